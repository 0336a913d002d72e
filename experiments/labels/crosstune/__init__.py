"""Descriptions of classes that read the states of a frozen encoder, with few labels."""
