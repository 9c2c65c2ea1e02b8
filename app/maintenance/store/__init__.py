"""Moves an installation between stores: decision 0059."""
