"""The tables of dev/docs/scaling.md, from `train_gpt plan`: what an update would take on many GPUs.

    dev/study/scaling.py [--train-gpt build/train_gpt] [--check]

rewrites the page's tables, or with --check says whether they are what plan says. Everything is an estimate: nothing was
measured on these machines.
"""
import argparse
import json
import pathlib
import subprocess
import sys

ROOT = pathlib.Path(__file__).resolve().parent.parent.parent
sys.path[:0] = [str(ROOT / 'scripts')]
import study_report  # noqa: E402

PAGE = ROOT / 'dev' / 'docs' / 'scaling.md'
PEAK, MFU = 790, 0.4  # TFLOP/s of a large bf16 product on an H200, and the share of it that training is to reach
LINKS = {8: (450, 'NVLink, 450 GB/s'), 64: (50, '400 Gbit/s a GPU'), 1024: (50, '400 Gbit/s a GPU')}
SEVEN = {'n_layer': 32, 'n_head': 32, 'd_model': 4096, 'd_ff': 11008, 'vocab_size': 32000}
# Sequences of so many tokens, 1024 in an update.
MODELS = {'124M': ('llama-124m', {}, 1024), '210M': ('llama-210m', {}, 1024), '1B': ('llama-1b', {}, 2048),
          '7B': ('llama-1b', SEVEN, 4096)}
PRESETS = ('muon', 'adamw', 'ef21-muon')


def plan(program, model, preset, ranks):
    config, changes, length = MODELS[model]
    settings = {f'model.{key}': value for key, value in changes.items()}
    settings.update({'model.seq_len': length, 'batch.sequences': 1024, 'batch.micro_batch': min(1024 // ranks, 32),
                     'optimizer.preset': preset, 'optimizer.lr': 0.001})
    command = [program, 'plan', '--config', str(ROOT / 'configs' / 'model' / f'{config}.json'), '--device', 'cuda',
               '--ranks', str(ranks), '--peak', str(PEAK), '--mfu', str(MFU), '--link', str(LINKS[ranks][0]), '--json']
    for key, value in settings.items():
        command += ['--set', f'{key}={value}']
    return json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def row(model, ranks, planned):
    scaling = planned['scaling']
    ms = [1e3 * scaling[key] for key in ('gradients_s', 'up_s', 'directions_s', 'down_s', 'seconds')]
    cells = [model, str(ranks), *(f'{value:.3g}' for value in ms), f"{scaling['efficiency']:.0%}",
             f"{1e3 * scaling['overlapped_seconds']:.3g}", f"{scaling['overlapped_efficiency']:.0%}"]
    return '| ' + ' | '.join(cells) + ' |'


def tables(program):
    result = {}
    for preset in PRESETS:
        lines = ['| model | GPUs | gradients | up | directions | down | together, ms | efficiency | overlapped, ms | '
                 'efficiency |', '|---|' + '---:|' * 9]
        for model in MODELS:
            for ranks in LINKS:
                lines.append(row(model, ranks, plan(program, model, preset, ranks)))
        result[preset] = '\n'.join(lines)
    return result


def main():
    parser = argparse.ArgumentParser(description=__doc__.split('\n')[0])
    parser.add_argument('--train-gpt', default=str(ROOT / 'build' / 'train_gpt'))
    parser.add_argument('--check', action='store_true', help='change nothing; status 1 where the page differs')
    options = parser.parse_args()
    page = PAGE.read_text()
    filled = study_report.fill(page, tables(options.train_gpt))
    if options.check:
        sys.exit(filled != page)
    PAGE.write_text(filled)


if __name__ == '__main__':
    main()
