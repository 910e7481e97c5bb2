"""The bench: what the service does on this machine, on real brokers and a real database, beside what they do bare.

`python -m bench` runs all rows, `--only NAME` one; a rate counts only if its readings are in the database afterwards.
"""
