"""Tables of the docs from benchmark documents, so that no figure is copied by hand; see `__main__`.

`benchmarks` declares what is run, `measuring` runs it and keeps the documents, `pages` writes the tables. The
other modules declare the tables of a page each, and what they take from the documents.
"""
