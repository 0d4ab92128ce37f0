"""Live semantics without sockets: the wire protocol, the topics, the sessions of one node and the broker between
nodes.
"""
