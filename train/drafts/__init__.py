"""Drafts: small networks that learn to guess what a model will say."""
