"""Ranks of two machines, as far as one can play both: a connection that goes through a third party and is lost."""
import os
import selectors
import socket
import subprocess
import threading
import time

from cli import TRAIN_GPT
from test_ranks import RanksTest, free_port


class Link(threading.Thread):
    """Passes on what comes to `port` to the port `to`, both ways, until it is cut: then nothing comes through, and
    neither side is told."""

    def __init__(self, to):
        super().__init__(daemon=True)
        self.to, self.cut = to, threading.Event()
        self.listener = socket.create_server(('127.0.0.1', 0))
        self.port = self.listener.getsockname()[1]
        self.sockets = [self.listener]

    def run(self):
        near = self.listener.accept()[0]
        self.sockets.append(near)
        for _ in range(1000):  # rank 0 may not be there yet
            try:
                far = socket.create_connection(('127.0.0.1', self.to))
                break
            except ConnectionRefusedError:
                time.sleep(0.02)
        self.sockets.append(far)
        with selectors.DefaultSelector() as ready:
            ready.register(near, selectors.EVENT_READ, far)
            ready.register(far, selectors.EVENT_READ, near)
            while not self.cut.is_set():
                for key, _ in ready.select(0.05):
                    data = key.fileobj.recv(1 << 16)
                    if not data:
                        return
                    key.data.sendall(data)

    def close(self):
        self.cut.set()
        self.join()
        for each in self.sockets:
            each.close()


class MachinesTest(RanksTest):
    def start_over(self, link, *arguments):
        started = []
        for rank, port in enumerate((link.to, link.port)):
            variables = {'RANK': str(rank), 'WORLD_SIZE': '2', 'MASTER_ADDR': '127.0.0.1', 'MASTER_PORT': str(port)}
            started.append(subprocess.Popen(
                [TRAIN_GPT, 'train', '--config', 'config.json', '--device', 'cpu', *arguments], cwd=self.folder,
                env={**os.environ, **variables}, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True))
        self.addCleanup(lambda: [(process.kill(), process.communicate()) for process in started])
        return started

    def link(self):
        link = Link(free_port())
        self.addCleanup(link.close)
        link.start()
        return link

    def test_a_lost_connection_ends_both_sides(self):
        self.config(self.changes, run={'steps': 100000, 'rank_timeout': 2})
        link = self.link()
        ranks = self.start_over(link)
        self.wait_for_update()
        link.cut.set()
        for rank, process in enumerate(ranks):
            out, err = process.communicate(timeout=30)
            self.assertEqual(process.returncode, 1, out + err)
            # Neither can tell the other: each names who is lost to it.
            self.assertEqual(err.count('train_gpt: '), 1, err)
            self.assertRegex(err, rf"^train_gpt: rank {1 - rank} (did not come to|gave no sign of life in) '.*lost connection\?$")

    def test_training_over_a_link(self):
        self.ranks(2, run='own')
        for process in self.start_over(self.link(), '--set', 'run.dir=linked'):
            out, err = process.communicate(timeout=60)
            self.assertEqual(process.returncode, 0, out + err)
        self.assert_same_run('own', 'linked', 20)


del RanksTest
