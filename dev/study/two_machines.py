#!/usr/bin/env python3
"""Two machines on one: network namespaces A (10.77.0.1) and B (10.77.0.2) with a cable between them. Tries what
several machines meet with. Needs root and the package iproute2; no part of `make check`.

    dev/study/two_machines.py [--train-gpt build/train_gpt]
"""
import argparse
import contextlib
import json
import os
import pathlib
import shutil
import subprocess
import sys
import tempfile
import time

ROOT = pathlib.Path(__file__).resolve().parent.parent.parent
sys.path[:0] = [str(ROOT / 'tests')]
from cli import TINY_MODEL, write_tokens  # noqa: E402

NAMES = {'A': 'lmo-a', 'B': 'lmo-b'}
ADDRESSES = {'A': '10.77.0.1', 'B': '10.77.0.2'}


def ip(*arguments, check=True):
    subprocess.run(['ip', *arguments], check=check, stderr=None if check else subprocess.DEVNULL)


@contextlib.contextmanager
def machines():
    """Machine A knows itself as 127.0.1.1, as Debian's installer has it; B knows it by its address."""
    folders = [pathlib.Path('/etc/netns') / name for name in NAMES.values()]
    try:
        for name in NAMES.values():
            ip('netns', 'add', name)
            ip('-n', name, 'link', 'set', 'lo', 'up')
        ip('link', 'add', 'lmo-va', 'netns', NAMES['A'], 'type', 'veth', 'peer', 'name', 'lmo-vb', 'netns', NAMES['B'])
        for machine, device in (('A', 'lmo-va'), ('B', 'lmo-vb')):
            ip('-n', NAMES[machine], 'addr', 'add', f'{ADDRESSES[machine]}/24', 'dev', device)
            ip('-n', NAMES[machine], 'link', 'set', device, 'up')
        for folder, address in zip(folders, ('127.0.1.1', ADDRESSES['A'])):
            folder.mkdir(parents=True)
            (folder / 'hosts').write_text(f'127.0.0.1 localhost\n{address} node-a\n')
        yield
    finally:
        for name in NAMES.values():
            ip('netns', 'del', name, check=False)
        for folder in folders:
            shutil.rmtree(folder, ignore_errors=True)


class Trial:
    def __init__(self, program, folder):
        self.program, self.folder = str(pathlib.Path(program).resolve()), folder
        for name in ('train', 'val'):
            write_tokens(folder / f'{name}.bin', 4000)
        (folder / 'config.json').write_text(json.dumps({
            'model': TINY_MODEL, 'data': {'train': 'train.bin', 'val': 'val.bin'}, 'batch': {'sequences': 8},
            'run': {'steps': 20, 'threads': 1}, 'optimizer': {'preset': 'adamw', 'lr': 0.01}, 'log': {'peak_tflops': 1}}))

    def start(self, run, *arguments, address='node-a', port=29500, where='AABB'):
        ranks = []
        for rank, machine in enumerate(where):
            variables = {'RANK': str(rank), 'WORLD_SIZE': str(len(where)), 'MASTER_ADDR': address, 'MASTER_PORT': str(port)}
            ranks.append(subprocess.Popen(
                ['ip', 'netns', 'exec', NAMES[machine], self.program, 'train', '--config', 'config.json', '--device', 'cpu',
                 '--set', f'run.dir={run}', *arguments], cwd=self.folder, env={**os.environ, **variables}, text=True,
                stdout=subprocess.PIPE, stderr=subprocess.PIPE))
        return ranks

    def ends(self, ranks, since):
        for rank, process in enumerate(ranks):
            error = process.communicate(timeout=200)[1].strip()
            print(f'  rank {rank}: status {process.returncode} after {time.time() - since:.1f} s: {error}')

    def wait_for_update(self, run):
        file = self.folder / run / 'metrics.jsonl'
        while not file.exists() or file.read_text().count('"train"') < 3:
            time.sleep(0.01)

    def losses(self, run):
        lines = (self.folder / run / 'metrics.jsonl').read_text().splitlines()
        return [json.loads(line)['loss'] for line in lines if '"train"' in line]

    def run(self):
        print('four ranks on two machines, by a name that is a loopback on one of them')
        self.ends(self.start('two'), time.time())
        subprocess.run([self.program, 'train', '--config', 'config.json', '--device', 'cpu', '--gpus', '4', '--set',
                        'run.dir=one'], cwd=self.folder, check=True, stdout=subprocess.DEVNULL)
        print('  the losses of four ranks on one machine:', self.losses('one') == self.losses('two'))

        print('the cable is pulled, run.rank_timeout 3')
        ranks = self.start('pulled', '--set', 'run.steps=1000000', '--set', 'run.rank_timeout=3')
        self.wait_for_update('pulled')
        ip('-n', NAMES['A'], 'link', 'set', 'lmo-va', 'down')
        self.ends(ranks, time.time())
        ip('-n', NAMES['A'], 'link', 'set', 'lmo-va', 'up')

        print('the port is in use on the first machine')
        listener = subprocess.Popen(['ip', 'netns', 'exec', NAMES['A'], sys.executable, '-m', 'http.server', '29600'],
                                    stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        time.sleep(1)
        self.ends(self.start('used', port=29600, where='AB'), time.time())
        listener.kill()
        listener.wait()

        print('an address that nobody has, 60 s')
        self.ends(self.start('nobody', address='10.77.0.9', where='AB'), time.time())


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--train-gpt', default=str(ROOT / 'build' / 'train_gpt'))
    arguments = parser.parse_args()
    if os.getuid() != 0 or not shutil.which('ip'):
        sys.exit('two_machines.py: makes network namespaces, for which it needs root and the command ip (package iproute2)')
    with tempfile.TemporaryDirectory() as folder, machines():
        Trial(arguments.train_gpt, pathlib.Path(folder)).run()


if __name__ == '__main__':
    main()
