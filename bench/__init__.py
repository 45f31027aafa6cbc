"""Measurements side by side: `python -m bench [rows...]`. README.md says what each row is and how to read it."""
