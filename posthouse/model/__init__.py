"""Values and pure policy; no I/O. What is configured and what is decided is declared here, once."""
