"""A long line between the three parties: network namespaces on this machine, and a router that keeps packets waiting.

Each party's process has a network namespace of its own, in which the only way out is a TUN device. Its packets reach
``encml.bench.line.router``, which holds every one of them for half the round trip and lets each party send no faster
than the line. TCP is the kernel's and works as over a real line: slow start, windows, retransmissions. Where the
kernel has netem, its qdisc on each device delays and limits instead, and the router only passes packets on.

Everything ends with the processes: namespaces and devices have no names outside, and nothing outside is touched.
"""
