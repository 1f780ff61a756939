"""A live page of one or several runs, on this machine alone: what they write is followed, and nothing is written."""
