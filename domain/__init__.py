"""The rules of the marketplace: entities, transitions and use cases.

Knows nobody: standard library and pydantic only. What it needs from outside is written down in :mod:`domain.ports`.
"""
