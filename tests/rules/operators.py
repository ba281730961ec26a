"""Stands for a library of operators: it is never imported."""
