"""Generators of token sequences with known answers, seeded and documented with the source of their rules."""
