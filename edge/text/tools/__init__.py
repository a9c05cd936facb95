"""How models write calls of tools: three families of syntax, each read, written and put into a grammar.

`json_calls` (JSON in marks), `python_calls` and `xml_calls` are the families; `detection` finds out which one
a model's chat template uses; `description` is for templates that know no tools.
"""
