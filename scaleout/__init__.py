"""Bistro92 on PostgreSQL, where several processes serve one restaurant. README.md says when and how.

What is here is what differs there: the schema, the SQL where the dialects part, the transaction that guards writes,
and the tail of the log. Everything else is app.py's, which imports this folder only when the URL asks for it; nothing
here imports app.
"""
