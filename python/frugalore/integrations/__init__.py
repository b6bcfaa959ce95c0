"""Bridges to other libraries. Each module imports its library; frugalore alone imports none of them."""
