#!/usr/bin/env python3
"""Puts what the parts of gpu_check.sh left in a folder into results.json, and prints a short table.

    scripts/gpu_results.py FOLDER [--commit TEXT] [--nvcc TEXT] [--emulated]

Targets and predictions are those of one NVIDIA H200. They stand beside each result as gate, goal, stretch
and predicted, in the unit of its rate (GB/s or TFLOP/s). Standard library only.
"""
import argparse
import csv
import datetime
import json
import pathlib
import platform
import re
import statistics

LINES = 60
TARGET_DEVICE = 'H200'

# what, shape (regular expressions): gate, goal and stretch. Memory-bound kernels in GB/s, the others TFLOP/s.
TARGETS = [
    (r'kernel\.(rmsnorm_|swiglu_|classifier)', '', (3200, 3600, 3900)),
    (r'kernel\.attention_forward$', r'x512x64$', (180, 225, 300)),
    (r'kernel\.attention_backward$', r'x512x64$', (120, 170, 230)),
    (r'kernel\.symmetric_product', r'^\d+x768x', (400, 500, 600)),
    (r'kernel\.symmetric_product', r'^\d+x2048x', (560, 660, 720)),
    (r'kernel\.symmetric_product', r'^\d+x4096x', (620, 720, 750)),
]
# Times by plain products of the library over ours.
RATIO_TARGETS = [('5 steps of', '^36x768x2048$', (1.5, 1.75, 2.0)), ('5 steps of', '^48x768x768$', (1.1, 1.3, 1.45))]
# Shares of the copy rate of the same run.
SHARE_TARGETS = [(r'kernel\.(momentum|adam|sign|apply|fused_update\.\w+)$', '', (0.85, 0.90, 0.94))]
# GEMMs by their inner extent (a shape is m x n x k): measured by others on cards of this kind.
PREDICTIONS = [
    (r'ceiling\.copy', '', 4300),
    (r'ceiling\.gemm', '', 790),
    (r'kernel\.fused_update\.', '', 3870),  # 0.9 of the copy
    (r'kernel\.gemm\..*\.wgrad', '', 675),
    (r'kernel\.gemm\.', r'x768 n.$', 660),
    (r'kernel\.gemm\.', r'x(1[0-9]{3}|2[0-9]{3}) n.$', 764),
    (r'kernel\.gemm\.', r'x([4-9]\d{3}|\d{5,}) n.$', 790),
    (r'kernel\.attention_forward\.cudnn', r'x512x64$', 225),
    (r'kernel\.attention_forward\.cudnn', r'x1024x64$', 288),
    (r'kernel\.attention_forward\.cudnn', r'x2048x64$', 334),
    (r'kernel\.newton_schulz', r'^\d+x(768x|\d+x768$)', 560),
    (r'kernel\.newton_schulz', r'^\d+x(2048x|\d+x2048$)', 720),
    (r'kernel\.newton_schulz', r'^\d+x(4096x|\d+x4096$)', 770),
]


def read_status(folder):
    path = folder / 'status.tsv'
    rows = csv.reader(path.open(), delimiter='\t', quoting=csv.QUOTE_NONE) if path.exists() else []
    return [{'part': part, 'check': check, 'status': status, 'seconds': int(seconds), 'note': note}
            for part, check, status, seconds, note in rows]


def read_tests(folder):
    """Counts of the unit tests, and the names of those that failed or were skipped."""
    try:
        suites = json.loads((folder / 'tests.json').read_text())['testsuites']
    except (OSError, ValueError, KeyError):
        return None
    result = {'passed': 0, 'failed': [], 'skipped': []}
    for suite in suites:
        for test in suite['testsuite']:
            name = f'{suite["name"]}.{test["name"]}'
            if test.get('failures'):
                result['failed'].append(name)
            elif test['result'] == 'SKIPPED':
                result['skipped'].append(name)
            elif test['status'] == 'RUN':
                result['passed'] += 1
    return result


def read_lines(path):
    lines = []
    try:
        text = path.read_text()
    except OSError:
        return lines
    for line in text.splitlines():
        try:
            lines.append(json.loads(line))
        except ValueError:
            pass  # cut short when the program was stopped
    return lines


def read_bench(folder, name='bench'):
    return [with_targets(line) for line in read_lines(folder / f'{name}.jsonl')]


def with_targets(line):
    def matching(table):
        return next((row[2] for row in table
                     if re.match(row[0], line['what']) and re.search(row[1], line['shape'])), None)

    for key, table in (('', TARGETS), ('_share', SHARE_TARGETS), ('_ratio', RATIO_TARGETS)):
        targets = matching(table)
        if targets:
            line.update(zip((f'gate{key}', f'goal{key}', f'stretch{key}'), targets))
    predicted = matching(PREDICTIONS)
    if predicted:
        line['predicted'] = predicted
    return line


def read_clocks(folder):
    """What nvidia-smi wrote: of each number the least, median and largest value over the rows."""
    result = {}
    for path in sorted(folder.glob('*.csv')):
        rows = list(csv.reader(path.open(errors='replace'), skipinitialspace=True))
        if len(rows) < 2:
            continue
        names = [name.split(' [')[0] for name in rows[0]]
        if path.stem == 'gpu':  # before all parts: for the names
            result['gpu'] = dict(zip(names, rows[1]))
            continue
        table = {}
        for column, name in enumerate(names):
            values = [row[column] for row in rows[1:] if len(row) == len(names)]
            try:
                numbers = [float(value) for value in values]
                table[name] = [min(numbers), statistics.median(numbers), max(numbers)]
            except ValueError:
                table[name] = values[0] if values else None
        result[path.stem] = table
    return result


def collect(folder, arguments):
    bench, clocks = read_bench(folder), read_clocks(folder)
    described = next((line['device'] for line in bench + read_lines(folder / 'train.jsonl')
                      if line['what'] not in ('train.peer', 'train.left_out') and 'device' in line), None)
    gpu = clocks.get('gpu', {})
    return {
        'device': described or gpu.get('name'),
        'driver': gpu.get('driver_version'),
        'cuda': search(r'CUDA ([0-9.]+)', described),
        'cublaslt': search(r'cuBLASL?t? ([0-9.]+)', described),
        'nvcc': arguments.nvcc,
        'emulated': arguments.emulated,
        'commit': arguments.commit,
        'date': datetime.datetime.now(datetime.timezone.utc).isoformat(timespec='seconds'),
        'host': f'{platform.system()} {platform.release()}, {platform.machine()}',
        'targets_for': f'one NVIDIA {TARGET_DEVICE}',
        'parts': read_status(folder),
        'tests': read_tests(folder),
        'clocks': clocks,
        'bench': bench,
        'train': read_lines(folder / 'train.jsonl'),
        'bench_optimizer': read_bench(folder, 'bench_optimizer'),
        'newton_schulz': read_bench(folder, 'newton_schulz'),
    }


def search(pattern, text):
    found = re.search(pattern, text or '')
    return found and found.group(1)


# ---- the table ------------------------------------------------------------------------------------

def header_lines(results):
    yield (f'{results["device"] or "device not known"}; driver {results["driver"]}, nvcc {results["nvcc"]}, '
           f'commit {results["commit"][:12]}{results["commit"][40:]}')
    if results['emulated']:
        yield 'EMULATED: these times say nothing about a GPU'
    for row in results['parts']:
        note = f' ({row["note"]})' if row['note'] else ''
        yield f'{row["part"] + ": " + row["check"]:44} {row["status"]}, {row["seconds"]} s{note}'
    tests = results['tests']
    if tests:
        yield f'tests: {tests["passed"]} passed, {len(tests["failed"])} failed, {len(tests["skipped"])} skipped'
        yield from (f'  FAILED {name}' for name in tests['failed'][:8])
    during = results['clocks'].get('clocks_during')
    if during:
        spans = ['{} {:.0f} to {:.0f} (median {:.0f})'.format(name, values[0], values[2], values[1])
                 for name, values in during.items()
                 if name in ('clocks.current.sm', 'clocks.sm', 'power.draw') and isinstance(values, list)]
        yield 'while measuring: ' + ', '.join(spans)


def verdict(line, rate):
    """Beside a target; rates are comparable on the device that they are meant for, shares everywhere."""
    if 'emulator' in line['device']:
        return ''
    share = 'gate_share' in line
    gate, goal = (line.get(f'{key}_share' if share else key) for key in ('gate', 'goal'))
    if gate is None:
        return f'  predicted {line["predicted"]:g}' if 'predicted' in line else ''
    if not share and TARGET_DEVICE not in line['device']:
        return f'  goal there {goal:g}'
    value = line['ceiling_share'] if share else rate
    return f'  goal {goal:g}: ' + ('met' if value >= goal else 'gate met' if value >= gate else 'MISSED')


def train_lines(line, emulated):
    """A case of gpu_compare.py: our speed, its goals, the ratios to PyTorch."""
    def judged(found):
        if emulated or 'goal' not in found or TARGET_DEVICE not in line['device']:
            return ''
        verdicts = [text for key, text in (('goal', 'met'), ('gate', 'gate met')) if found['median'] >= found[key]]
        return f', goal {found["goal"]:g}: {(verdicts or ["MISSED"])[0]}'

    speed, share = line['tokens_per_s'], line['phases_share']
    yield (f'{line["case"]:22} {speed["median"]:8.0f} tokens/s{judged(speed)}, mfu {line["mfu"]:.1%}, '
           f'parts / whole {share:.3f}' + ('' if emulated or 0.97 <= share <= 1.03 else ': NOT WITHIN 3 %'))
    if line.get('launches'):
        saved = line['launches']['saved_ms']
        yield (f'  dependent launches save {saved["median"]:.3f} ms of {line["launches"]["plain_ms"]:.2f}'
               + (' (predicted {} to {})'.format(*saved['predicted']) if 'predicted' in saved else ''))
    if line['torch']:
        yield '  times ' + '; '.join(f'{name}: {found["ratio"]["median"]:.2f}{judged(found["ratio"])}'
                                     for name, found in line['torch'].items())


def bench_line(line):
    name = line['what'].removeprefix('kernel.')
    start = f'{name:22} {line["shape"]:22} {line["dtype"]:4}'
    if 'error' in line:
        return f'{start} failed: {line["error"]}'
    rate = line.get('gbs', line.get('tflops'))
    unit = 'GB/s' if 'gbs' in line else 'TF/s'
    return f'{start} {line["ms"]:9.3f} {rate:7.4g} {unit} {line["ceiling_share"]:5.0%}{verdict(line, rate)}'


def table(results):
    """At most LINES lines; of the measurements those with a target first."""
    lines = list(header_lines(results))
    for line in results['train']:
        if line['what'] == 'train.case':
            lines += train_lines(line, results['emulated'])
        elif line['what'] == 'train.left_out':
            lines.append(f'{line["case"]:22} left out: {line["why"]}'[:160])
    bench = results['bench']
    room = LINES - len(lines) - 3
    if bench and room > 0:
        def importance(line):
            return ('error' not in line, 'gate' not in line and 'gate_share' not in line,
                    not line['what'].startswith('ceiling.'), 'predicted' not in line)

        chosen = sorted(range(len(bench)), key=lambda i: importance(bench[i]))[:room]
        lines.append(f'{"operation":22} {"shape":22} {"":4} {"ms":>9} {"rate":>12} {"share":>5}'
                     f'  (targets: one {TARGET_DEVICE})')
        lines += [bench_line(bench[i]) for i in sorted(chosen)]
        if len(chosen) < len(bench):
            lines.append(f'... and {len(bench) - len(chosen)} more in results.json')
    return lines[:LINES - 1]


def main():
    parser = argparse.ArgumentParser(description=__doc__.split('\n')[0])
    parser.add_argument('folder', type=pathlib.Path)
    parser.add_argument('--commit', default='unknown')
    parser.add_argument('--nvcc')
    parser.add_argument('--emulated', action='store_true')
    arguments = parser.parse_args()
    results = collect(arguments.folder, arguments)
    path = arguments.folder / 'results.json'
    path.write_text(json.dumps(results, indent=1) + '\n')
    print('\n'.join(table(results)))
    print(path)


if __name__ == '__main__':
    main()
