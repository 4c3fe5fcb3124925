#!/usr/bin/env python3
"""Checks the direction of dependencies between the rooms of llmc/ (architecture: never upward).

    train_gpt.cu -> train -> {model, optim, schedule, smoothness, dist, data, io} -> norm -> device -> core

Rooms on one floor do not know each other; cpu/ and cuda/ implement device/ and no other room includes them;
CUDA headers appear in llmc/cuda only; a file includes what it uses by its path from the root.
"""
import pathlib
import re
import sys

FLOORS = {'core': 0, 'device': 1, 'cpu': 2, 'cuda': 2, 'norm': 2, 'train': 4}
FLOORS.update({room: 3 for room in ('model', 'optim', 'schedule', 'smoothness', 'dist', 'data', 'io')})
CUDA_HEADER = re.compile(r'#include <(cuda|cublas|cudnn|nccl|nvml)')
INCLUDE = re.compile(r'^\s*#include "([^"]+)"', re.MULTILINE)


def problems(root):
    for path in sorted(root.glob('llmc/*/*')):
        if path.suffix not in ('.h', '.cpp', '.cu', '.cuh'):
            continue
        room, text = path.parent.name, path.read_text()
        if room not in FLOORS:
            yield f'{path}: llmc/{room} is not a room of the house'
            continue
        if room != 'cuda' and CUDA_HEADER.search(text):
            yield f'{path}: a CUDA header outside llmc/cuda'
        for included in INCLUDE.findall(text):
            parts = included.split('/')
            if room == 'cuda' and parts[:2] == ['dev', 'emulator']:
                continue  # the emulated half of the kernels' dialect
            if parts[0] != 'llmc' or len(parts) != 3:
                yield f'{path}: includes "{included}"; expected "llmc/ROOM/FILE"'
                continue
            other = parts[1]
            if other == room:
                continue
            if other in ('cpu', 'cuda'):
                yield f'{path}: includes a backend, "{included}"; only device/backend.h is for everybody'
            elif room in ('cpu', 'cuda') and other not in ('device', 'core'):
                yield f'{path}: a backend includes "{included}"'
            elif FLOORS.get(other, 9) >= FLOORS[room]:
                yield f'{path}: includes "{included}": {room} stands on the floor of {other} or below'


if __name__ == '__main__':
    found = list(problems(pathlib.Path(__file__).resolve().parent.parent))
    print('\n'.join(found))
    sys.exit(1 if found else 0)
