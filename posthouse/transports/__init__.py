"""Ways out: one module per kind of server. base.py is the contract."""
