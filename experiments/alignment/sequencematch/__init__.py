"""SequenceMatch: texts matched as occupancies, with a backspace."""
