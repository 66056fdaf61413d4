"""Servers that misbehave by name, for testing programs that send and read mail: Posthouse itself, and yours.

Each module is one protocol, can be used in a test and started as a command (`python -m posthouse.testing.smtp --list`),
and depends on nothing else in Posthouse.
"""
