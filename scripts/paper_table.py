#!/usr/bin/env python3
"""Our final validation losses beside the published ones (configs/paper), blank where we have not run.

    paper_table.py [--runs FOLDER]     FOLDER (default runs) holds run folders named as the configurations
"""
import argparse
import json
import pathlib
import sys

PAPER = pathlib.Path(__file__).resolve().parent.parent / 'configs' / 'paper'


def final_loss(folder):
    """val_loss of the run's summary; None when it is not finished or not there."""
    path = folder / 'metrics.jsonl'
    if not path.exists():
        return None
    loss = None
    for number, line in enumerate(path.read_text().splitlines(), 1):
        try:
            entry = json.loads(line)
        except ValueError as error:
            sys.exit(f'paper_table.py: {path}: line {number}: {error}')
        if entry.get('type') == 'summary':
            loss = entry['val_loss']
    return loss


def cell(loss):
    return f'{loss:10.4f}' if loss is not None else 10 * ' '


def row(label, *pairs):
    """Published and ours for each pair, and the difference where there is one."""
    text = f'{label:<24}'
    for published, ours in pairs:
        difference = f'{ours - published:+10.4f}' if ours is not None else 10 * ' '
        text += f'{cell(published)}{cell(ours)}{difference}'
    print(text.rstrip())


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--runs', type=pathlib.Path, default=pathlib.Path('runs'))
    runs = parser.parse_args().runs
    published = json.loads((PAPER / 'published.json').read_text())

    columns = ' published      ours      diff'
    print(f'{"final validation loss":<24}{"best manual warm-up":>30}{"adaptive warm-up":>30}')
    print(f'{"":<24}{columns}{columns}')
    for entry in published['cells']:
        ours = [final_loss(runs / f'{entry["setup"]}-{kind}') for kind in ('baseline', 'adaptive')]
        row(entry['setup'], (entry['baseline'], ours[0]), (entry['adaptive'], ours[1]))
    print(f'\n{"target_loss (ablation)":<24}{columns}')
    for entry in published['ablation']:
        row(str(entry['target_loss']), (entry['loss'], final_loss(runs / entry['name'])))


if __name__ == '__main__':
    main()
