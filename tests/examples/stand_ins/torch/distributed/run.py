"""`torchrun`: starts the processes of one node, with the options and variables of PyTorch's own ("torchrun (Elastic
Launch)" in its documentation). The nodes meet at master_addr:master_port before any process is started."""

from __future__ import annotations

import argparse
import os
import socket
import subprocess
import sys
import time

MEETING_TIMEOUT_S = 60


def main() -> None:
    parser = argparse.ArgumentParser(prog="torchrun", allow_abbrev=False)
    parser.add_argument("--nproc_per_node", type=int, default=1)
    parser.add_argument("--nnodes", type=int, default=1)
    parser.add_argument("--node_rank", type=int, default=0)
    parser.add_argument("--master_addr", default="127.0.0.1")
    parser.add_argument("--master_port", type=int, default=29500)
    parser.add_argument("--standalone", action="store_true")
    parser.add_argument("script")
    parser.add_argument("arguments", nargs=argparse.REMAINDER)
    given = parser.parse_args()
    if given.nnodes > 1:
        meet(given.master_addr, given.master_port, given.node_rank, given.nnodes)
    workers = [start(given, local_rank) for local_rank in range(given.nproc_per_node)]
    sys.exit(max(worker.wait() for worker in workers))


def start(given: argparse.Namespace, local_rank: int) -> subprocess.Popen[bytes]:
    variables = {
        "LOCAL_RANK": local_rank,
        "RANK": given.node_rank * given.nproc_per_node + local_rank,
        "WORLD_SIZE": given.nnodes * given.nproc_per_node,
        "LOCAL_WORLD_SIZE": given.nproc_per_node,
        "MASTER_ADDR": given.master_addr,
        "MASTER_PORT": given.master_port,
    }
    env = {**os.environ, **{name: str(value) for name, value in variables.items()}}
    return subprocess.Popen([sys.executable, given.script, *given.arguments], env=env)


def meet(address: str, port: int, rank: int, count: int) -> None:
    """Rank 0 waits for every other rank to say its number; each learns from it that all are there."""
    if rank == 0:
        with socket.create_server((address, port)) as server:
            server.settimeout(MEETING_TIMEOUT_S)
            others = [server.accept()[0] for _ in range(count - 1)]
        ranks = sorted(int(other.recv(16)) for other in others)
        if ranks != list(range(1, count)):
            sys.exit(f"torchrun: expected the ranks 1 to {count - 1}, got {ranks}")
        for other in others:
            other.sendall(b"go")
            other.close()
        print(f"all {count} nodes met", flush=True)
        return
    deadline = time.monotonic() + MEETING_TIMEOUT_S
    while True:
        try:
            with socket.create_connection((address, port), timeout=MEETING_TIMEOUT_S) as master:
                master.sendall(str(rank).encode())
                if master.recv(2) != b"go":
                    sys.exit("torchrun: rank 0 went away")
                return
        except ConnectionRefusedError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.02)


if __name__ == "__main__":
    main()
