"""Commands for people: to talk to a language model, and to fine-tune one."""
