"""Mutants: the shipped code with one rule broken, and the scenarios that must notice."""
