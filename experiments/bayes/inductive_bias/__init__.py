"""Inductive bias of a task: the surprise of meeting a hypothesis that generalizes."""
