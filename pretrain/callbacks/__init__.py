"""What a run does beside training: each is called around every step, all in one order."""
