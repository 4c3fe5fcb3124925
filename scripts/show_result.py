#!/usr/bin/env python3
"""Closes `make train`: the model's validation loss beside what a unigram model reaches, and where things are.

    show_result.py RUN_DIR DATA_DIR
"""
import json
import math
import pathlib
import sys


def main():
    if len(sys.argv) != 3:
        sys.exit('usage: show_result.py RUN_DIR DATA_DIR')
    run, data = map(pathlib.Path, sys.argv[1:])
    try:
        lines = [json.loads(line) for line in (run / 'metrics.jsonl').open()]
        meta = json.loads((data / 'meta.json').read_text())
    except (OSError, ValueError) as error:
        sys.exit(f'show_result.py: {error}')
    summaries = [line for line in lines if line['type'] == 'summary']
    if not summaries:
        sys.exit(f'show_result.py: {run}/metrics.jsonl has no summary: the run is not finished')
    loss, unigram = summaries[-1]['val_loss'], meta['unigram_val_loss']
    uniform = math.log(meta['vocab_size'])
    name = 'byte' if meta['tokenizer'] == 'bytes' else 'token'
    print(f'\nvalidation loss, nats per {name}       (bits)')
    for label, value in (('every token equally likely', uniform), ('unigram model', unigram),
                         ('this model', loss)):
        print(f'  {label:<28}{value:6.3f}   ({value / math.log(2):.2f})')
    checkpoint = sorted((run / 'checkpoints').glob('step_*'))[-1]
    print(f'\nplot        {run}/plot.png\ncheckpoint  {checkpoint}\nmore text   build/train_gpt generate '
          f'--checkpoint {checkpoint} --prompt "It was "')


if __name__ == '__main__':
    main()
