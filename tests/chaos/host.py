"""A cluster of several nodes on one machine, in a process of its own, told what to do on stdin.

`replace N` kills the processes of worker node N, without asking them, and adds a new node;
`quit` ends it all. Answers are JSON lines on stdout.
"""

import contextlib
import json
import os
import socket
import sys

SYSTEM = {
    "health_check_initial_delay_ms": 1000,
    "health_check_period_ms": 1000,
    "health_check_failure_threshold": 5,
}


def main():
    nodes, cpus, dashboard = (int(argument) for argument in sys.argv[1:])
    answers = os.fdopen(os.dup(1), "w")
    with contextlib.redirect_stdout(sys.stderr):
        from ray.cluster_utils import Cluster

        head = {"num_cpus": cpus, "_system_config": SYSTEM, "include_dashboard": bool(dashboard)}
        if dashboard:
            head["dashboard_port"] = dashboard
        cluster = Cluster(initialize_head=True, head_node_args=head | own_port())
        workers = [cluster.add_node(num_cpus=cpus, **own_port()) for _ in range(nodes - 1)]

        def answer(**values):
            answers.write(json.dumps(values) + "\n")
            answers.flush()

        answer(address=cluster.address, raylets=[raylet_of(node) for node in workers])
        for line in sys.stdin:
            words = line.split()
            if words[0] == "quit":
                break
            index = int(words[1]) % len(workers)
            cluster.remove_node(workers[index], allow_graceful=False)
            workers[index] = cluster.add_node(num_cpus=cpus, **own_port())
            answer(raylets=[raylet_of(node) for node in workers])
        cluster.shutdown()


def own_port():
    """A port for a node's agent: the usual one is taken by any other node on this machine."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return {"dashboard_agent_listen_port": free.getsockname()[1]}


def raylet_of(node):
    """Process id of a node's raylet."""
    return node.all_processes["raylet"][0].process.pid


if __name__ == "__main__":
    main()
