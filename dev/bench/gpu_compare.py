#!/usr/bin/env python3
"""Our training step against PyTorch's on one GPU, in one run.

    dev/bench/gpu_compare.py --python PYTHON_WITH_TORCH --out train.jsonl

Cases are MODEL:SEQUENCESxLENGTH:PRESET, by default 124M at 256x512, 32x512 and 64x1024 and 210M at 256x512, each
with AdamW, Lion and Muon, the most telling ones first; a case that is not likely to end within --seconds is left out
by name. Ours (`train_gpt bench train`, a process a window) and PyTorch (dev/bench/train_torch.py, which compiles a
model once and stays) take turns, and each round begins with another. Speeds of a machine drift, ratios inside a round
hardly do: what counts is ours / PyTorch of each round, for each of PyTorch's optimizers and for its best.

Every measurement is a JSON line, written as it is made: `train.sample` of each window, then `train.case` with medians
and spreads, mfu (PaLM's formula over the datasheet's 989.4 TFLOP/s), parts, memory beside the plan, and for one NVIDIA
H200 gate, goal, stretch and predicted. Without a PyTorch, or with --python none, ours is measured alone.
"""
import argparse
import json
import os
import pathlib
import selectors
import statistics
import subprocess
import sys
import time

ROOT = pathlib.Path(__file__).resolve().parents[2]
PEER = ROOT / 'dev/bench/train_torch.py'
MODELS = {'124m': 'configs/model/llama-124m.json', '210m': 'configs/model/llama-210m.json'}
CASES = ['124m:256x512:muon', '124m:256x512:adamw', '124m:32x512:muon', '124m:32x512:adamw', '210m:256x512:muon',
         '124m:64x1024:muon', '124m:64x1024:adamw', '210m:256x512:adamw', '124m:32x512:lion', '124m:256x512:lion',
         '124m:64x1024:lion', '210m:256x512:lion']
PEAK = 989.4e12  # bf16, dense, of the datasheet of H100 and H200
PEER_TOKENS = 32768  # PyTorch's micro-batch at most: it keeps all logits

# For one H200: thousands of tokens a second (gate, goal, stretch, predicted); ratios (gate, goal, stretch).
SPEEDS = {'124m:256x512': (560, 640, 740, 600), '124m:32x512': (470, 550, 640, 534), '210m:256x512': (310, 350, 410, 343)}
RATIOS = {('adamw', 'best'): (1.10, 1.25, 1.40), ('32x512', 'torch.optim.Muon'): (1.4, 1.6, 1.8),
          ('32x512', 'Muon stacked, compiled'): (1.15, 1.3, 1.5)}
# Milliseconds of a step that dependent launches save, low and high; estimated, not measured. 124M launches some 200
# kernels of our own in a micro-step and its update (counted in the emulator): 1 to 2 us each for the 80 behind one of
# ours, 0.2 to 0.8 us for those behind cuBLAS, which lets nobody start early. 210M has twice the layers.
SAVED = {'124m:32x512': [0.1, 0.3], '124m:256x512': [0.1, 0.3], '124m:64x1024': [0.1, 0.3], '210m:256x512': [0.2, 0.5]}
MEMORY = {'124m:256x512': (50e9, 44e9)}  # bytes: gate, goal


class CompareError(Exception):
    """Something the user can mend; printed without a traceback."""


class Case:
    def __init__(self, text):
        try:
            self.model, shape, self.preset = text.rsplit(':', 2)
            self.sequences, self.length = map(int, shape.split('x'))
        except ValueError as error:
            raise CompareError(f'case "{text}": expected MODEL:SEQUENCESxLENGTH:PRESET, as in {CASES[0]}') from error
        self.name, self.shape = text, shape
        self.config = ROOT / MODELS[self.model] if self.model in MODELS else pathlib.Path(self.model).absolute()
        if not self.config.is_file():
            raise CompareError(f'case "{text}": no model {self.model}: expected {", ".join(MODELS)} or a file')

    @property
    def size(self):
        return f'{self.model}:{self.shape}'

    @property
    def tokens(self):
        return self.sequences * self.length


# ---- ours -----------------------------------------------------------------------------------------

class Ours:
    name = 'ours'

    def __init__(self, options):
        self.options = options

    def sample(self, case):
        o = self.options
        settings = {'model.seq_len': case.length, 'batch.sequences': case.sequences, 'optimizer.preset': case.preset,
                    'optimizer.lr': 1e-4, 'optimizer.weight_decay': 0.1}
        settings.update(setting.split('=', 1) for setting in o.set)
        command = [o.binary, 'bench', 'train', '--config', case.config, '--device', o.device, '--json', '--warmup', str(o.warmup),
                   '--steps', str(o.steps)]
        for key, value in settings.items():
            command += ['--set', f'{key}={value}']
        result = subprocess.run(command, capture_output=True, text=True, check=False, timeout=o.limit)
        if result.returncode != 0:
            raise RuntimeError((result.stderr.strip().splitlines() or [f'status {result.returncode}'])[-1])
        lines = [json.loads(line) for line in result.stdout.splitlines()]
        whole = next(line for line in lines if line['what'] == 'train')
        return {key: value for key, value in whole.items() if key != 'what'}


# ---- PyTorch --------------------------------------------------------------------------------------

class Peer:
    def __init__(self, options):
        self.options, self.about, self.model = options, None, None
        self.process = self.selector = None

    def start(self):
        o = self.options
        self.process = subprocess.Popen([o.python, PEER, '--device', o.device, '--threads', str(o.threads)], text=True,
                                        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=sys.stderr)
        self.selector = selectors.DefaultSelector()
        self.selector.register(self.process.stdout, selectors.EVENT_READ)
        self.model, self.about = None, self.read()

    def read(self):
        if not self.selector.select(self.options.limit):
            self.stop()
            raise RuntimeError(f'PyTorch did not answer for {self.options.limit:.0f} s')
        line = self.process.stdout.readline()
        if not line:
            raise RuntimeError(f'PyTorch ended with status {self.process.wait()}')
        answer = json.loads(line)
        if 'error' in answer:
            raise RuntimeError(answer['error'])
        return answer

    def ask(self, question, **values):
        self.process.stdin.write(f'{question} {json.dumps(values)}\n')
        self.process.stdin.flush()
        return self.read()

    def prepare(self, case):
        """The model of this size, with the largest micro-batch that its memory takes; what is told of it."""
        if self.model and self.model['size'] == case.size:
            return self.model
        micro = case.sequences
        while micro * case.length > PEER_TOKENS and micro % 2 == 0:
            micro //= 2
        while True:
            try:
                answer = self.ask('model', config=str(case.config), seq=case.length, micro=micro)
                break
            except RuntimeError as error:
                if 'out of memory' not in str(error).lower() or micro % 2:
                    raise
                micro //= 2
        self.model = {'size': case.size, 'micro_batch': micro, **answer}
        return self.model

    def stop(self):
        if self.process:
            self.process.kill()
            self.process.wait()


def start_peer(options, out):
    if options.python == 'none':
        return None
    peer = Peer(options)
    try:
        peer.start()
    except (OSError, RuntimeError) as error:
        out.line(what='train.left_out', case='PyTorch', why=str(error))
        return None
    out.line(what='train.peer', **peer.about)
    return peer


# ---- one case -------------------------------------------------------------------------------------

def measure(case, ours, peer, out, options):
    model, variants, left_out = None, [], []
    if peer:
        model = peer.prepare(case)
        told = peer.ask('variants', preset=case.preset)
        variants, left_out = told['variants'], told['left_out']
    names, rounds = [Ours.name, *variants], []
    for turn in range(options.rounds):
        speeds = {}
        for name in names[turn % len(names):] + names[:turn % len(names)]:
            if name == Ours.name:
                detail = ours.sample(case)
            else:
                detail = peer.ask('round', variant=name, sequences=case.sequences, steps=options.steps, warmup=1 if turn else 2)
            speeds[name] = {**detail, 'tokens_per_s': 1e3 * case.tokens / detail['ms']}
            out.line(what='train.sample', case=case.name, round=turn, variant=name, **speeds[name])
        rounds.append(speeds)
    return summary(case, rounds, model, left_out)


def spread(values):
    return {'median': statistics.median(values), 'min': min(values), 'max': max(values)}


def summary(case, rounds, model, left_out):
    own = [speeds[Ours.name] for speeds in rounds]
    middle = sorted(own, key=lambda sample: sample['ms'])[(len(own) - 1) // 2]
    speed = spread([sample['tokens_per_s'] for sample in own])
    flops_per_token = middle['tflops'] * 1e12 * middle['ms'] * 1e-3 / case.tokens
    line = {'what': 'train.case', 'case': case.name, 'model': case.model, 'shape': case.shape, 'preset': case.preset,
            'dtype': middle['dtype'], 'rounds': len(rounds), 'tokens_per_s': speed, 'ms': middle['ms'],
            'mfu': speed['median'] * flops_per_token / PEAK, 'mfu_of': PEAK,
            'parts_ms': {key.removesuffix('_ms'): middle[key] for key in middle
                         if key.endswith('_ms') and key not in ('phases_ms', 'gemm_library_ms')},
            'phases_share': middle['phases_share'], 'planned_bytes': middle['planned_bytes'],
            'peak_memory_bytes': middle['peak_memory_bytes'], 'torch_model': model, 'left_out': left_out, 'torch': {}}
    for name in sorted(name for name in rounds[0] if name != Ours.name):
        theirs = [speeds[name]['tokens_per_s'] for speeds in rounds]
        line['torch'][name] = {'tokens_per_s': spread(theirs), 'peak_memory_bytes': rounds[-1][name]['peak_memory_bytes'],
                               'ratio': spread([sample['tokens_per_s'] / other for sample, other in zip(own, theirs)])}
    if line['torch']:
        best = [max(speeds[name]['tokens_per_s'] for name in line['torch']) for speeds in rounds]
        line['torch']['best'] = {'tokens_per_s': spread(best),
                                 'ratio': spread([sample['tokens_per_s'] / other for sample, other in zip(own, best)])}
    line['launches'] = launches(own)
    add_targets(case, line)
    line['device'] = middle['device']
    return line


def launches(samples):
    """Plain against dependent launches, medians over the rounds; null where the device has one kind."""
    both = [sample['launches'] for sample in samples]
    if None in both:
        return None
    found = {key: statistics.median(one[key] for one in both) for key in ('plain_ms', 'dependent_ms')}
    return {**found, 'saved_ms': spread([one['plain_ms'] - one['dependent_ms'] for one in both])}


def add_targets(case, line):
    names = ('gate', 'goal', 'stretch', 'predicted')
    if case.size in SPEEDS:
        line['tokens_per_s'].update(zip(names, (1e3 * value for value in SPEEDS[case.size])))
    for name, found in line['torch'].items():
        targets = RATIOS.get((case.preset, name)) or RATIOS.get((case.shape, name))
        if targets:
            found['ratio'].update(zip(names, targets))
    if case.size in SAVED and line['launches']:
        line['launches']['saved_ms']['predicted'] = SAVED[case.size]
    if case.size in MEMORY:
        line['peak_memory_target'] = dict(zip(names, MEMORY[case.size]))
    line['phases_share_target'] = {'gate': [0.97, 1.03]}


# ---- the run --------------------------------------------------------------------------------------

class Output:
    def __init__(self, path):
        self.file = open(path, 'w', encoding='utf-8') if path else None

    def line(self, **values):
        text = json.dumps(values)
        print(text, file=self.file or sys.stdout, flush=True)
        if self.file and values['what'] == 'train.case':
            print(in_words(values), flush=True)
        elif self.file and values['what'] == 'train.left_out':
            print(f'left out: {values["case"]}: {values["why"]}', flush=True)


def in_words(line):
    speed = line['tokens_per_s']
    text = f'{line["case"]:22} {speed["median"]:9.0f} tokens/s, mfu {line["mfu"]:.1%}, parts / whole {line["phases_share"]:.3f}'
    if line['peak_memory_bytes']:
        text += f', memory {line["peak_memory_bytes"] / 1e9:.2f} GB (planned {line["planned_bytes"] / 1e9:.2f})'
    if line['launches']:
        saved = line['launches']['saved_ms']
        text += f'\n{"":22} dependent launches save {saved["median"]:.3f} ms ({saved["min"]:.3f} .. {saved["max"]:.3f})'
    for name, found in line['torch'].items():
        ratio = found['ratio']
        text += f'\n{"":22} {ratio["median"]:6.3f} ({ratio["min"]:.3f} .. {ratio["max"]:.3f}) times {name}'
    return text


def run(options, out):
    begin, longest = time.monotonic(), 0.0
    ours, peer = Ours(options), start_peer(options, out)
    failed = False
    for number, case in enumerate(options.cases):
        left = options.seconds - (time.monotonic() - begin)
        if number > 0 and left < longest:
            out.line(what='train.left_out', case=case.name, why=f'{left:.0f} of {options.seconds:.0f} s are left')
            continue
        start = time.monotonic()
        try:
            out.line(**measure(case, ours, peer, out, options))
        except (RuntimeError, subprocess.TimeoutExpired) as error:
            failed = True
            out.line(what='train.left_out', case=case.name, why=str(error))
            if peer and peer.process.poll() is not None:  # the other cases go on with a new one
                peer = start_peer(options, out)
        longest = max(longest, time.monotonic() - start)
    if peer:
        peer.stop()
    return failed


def parse_options():
    parser = argparse.ArgumentParser(description=__doc__.split('\n', maxsplit=1)[0])
    parser.add_argument('--binary', default=ROOT / 'build/train_gpt')
    parser.add_argument('--python', default=sys.executable, help='an interpreter with PyTorch, or none')
    parser.add_argument('--device', choices=['cuda', 'cpu'], default='cuda')
    parser.add_argument('--cases', nargs='+', default=CASES, metavar='MODEL:SEQUENCESxLENGTH:PRESET')
    parser.add_argument('--rounds', type=int, default=3)
    parser.add_argument('--steps', type=int, default=8, help='measured steps of a window')
    parser.add_argument('--warmup', type=int, default=2, help='steps of ours before them')
    parser.add_argument('--seconds', type=float, default=480, help='how long all of it may take, about')
    parser.add_argument('--limit', type=float, default=200, help='seconds that a window or a compilation may take')
    parser.add_argument('--threads', type=int, default=0, help='of PyTorch on a CPU')
    parser.add_argument('--set', action='append', default=[], metavar='KEY=VALUE', help='more settings of ours')
    parser.add_argument('--out', metavar='FILE', help='the JSON lines (default: stdout)')
    options = parser.parse_args()
    options.cases = [Case(text) for text in options.cases]
    if not os.access(options.binary, os.X_OK):
        raise CompareError(f'{options.binary} cannot be run: run make, or give --binary')
    return options


if __name__ == '__main__':
    try:
        arguments = parse_options()
        sys.exit(run(arguments, Output(arguments.out)))
    except CompareError as problem:
        sys.exit(f'gpu_compare.py: {problem}')
