"""Awaiting in event loops: what is received by tasks, and what they leave behind."""
