"""Ask2Mask: masked speech modeling on what a recognizer of the target speech is sure of."""
