"""An hour of mixed traffic against a real server, which is killed and started again now and then.

`known` has the requests whose answers are compared, `rude` what clients should not do, `life` one server from
its start to its end, `__main__` the whole run and its document.
"""
