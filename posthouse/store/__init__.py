"""All SQL, the key ring and the content of messages."""
