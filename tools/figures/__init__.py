"""Pictures: how all of them look (``style``), how labels keep apart (``labels``), and those of runs."""
