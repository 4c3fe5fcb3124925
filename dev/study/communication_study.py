#!/usr/bin/env python3
"""Less communication, on four ranks and one small model: EF21's compressors, local steps, and what they cost in loss.

    nice dev/study/communication_study.py run      trains what is missing under runs/communication_study (resumable; less
                                                   than an hour on 2 busy cores), then writes
                                                   dev/results/communication_study.json
    dev/study/communication_study.py report        the tables and pictures of dev/docs/communication.md from that file

Stages, each a sweep (scripts/sweep.py) in a folder of its own:
  rates      the groups of ef21-muon without compression, at several rates
  baseline   three seeds at the best of them
  ef21       the same at the same rate, compressed in many ways: one seed, or three where the saving is large
  delay      one of them at other rates, and with less momentum
  longer     some of them for four times the updates
  kept       what part of what they are made of messages carry
  mean       adamw and muon at their rates of dev/docs/optimizers.md, gradients shared at every update
  local      the same at the same rates, each rank for itself for K updates, by four outer steps
  fewer      the other way to the traffic of local steps: fewer updates of K times the batch
  speed      processor time of an update: of four ranks, and of one rank with 15 million parameters
  plans      bytes and operations of an update of larger models, as `plan` says
"""
import json
import pathlib
import resource
import statistics
import subprocess
import sys
import tempfile

from study import HERE, ROOT, Stopped, Study, main, report  # noqa: I001
from communication_report import write_report

RESULTS = ROOT / 'dev' / 'results' / 'communication_study.json'
RANKS, STEPS, WARMUP, BATCH = 4, 300, 15, 16
EVALUATED = 128  # batches
LESS_MOMENTUM = 0.8
SEEDS = 'run.seed,data.seed'
LR = 'optimizer.lr'
RATES = [0.005, 0.01, 0.02]
POINT = 10  # updates whose losses make a point of a curve


def natural(kind, **others):
    return {'type': kind, 'natural': True, **others}


NATURAL = {'type': 'natural'}
TOPK = natural('topk', fraction=0.15)  # what the preset has
# name -> (communication, seeds)
COMPRESSED = {
    'up natural': ({'up': NATURAL}, [0]),
    'up topk 0.3': ({'up': {'type': 'topk', 'fraction': 0.3}}, [0]),
    'up topk 0.15': ({'up': {'type': 'topk', 'fraction': 0.15}}, [0]),
    'up topk 0.05': ({'up': {'type': 'topk', 'fraction': 0.05}}, [0, 1, 2]),
    'up topk 0.15 natural': ({'up': TOPK}, [0, 1, 2]),
    'up columns 0.15 natural': ({'up': natural('columns', fraction=0.15)}, [0, 1, 2]),
    'up rank 16 natural': ({'up': natural('rank', rank=16)}, [0, 1, 2]),
    'up rank 4 natural': ({'up': natural('rank', rank=4)}, [0]),
    'down natural': ({'down': NATURAL}, [0]),
    'down topk 0.15 natural': ({'down': TOPK}, [0]),
    'both natural': ({'up': NATURAL, 'down': NATURAL}, [0]),
    'both topk 0.15 natural': ({'up': TOPK, 'down': TOPK}, [0, 1, 2]),
}
PRESET = 'up topk 0.15 natural'
TIMED = ['up natural', PRESET, 'up columns 0.15 natural', 'up rank 16 natural', 'both natural', 'both topk 0.15 natural']
SPEED_ROUNDS = 2
LONGER = 4
LONG = {PRESET: [0, 1, 2], 'up rank 16 natural': [0], 'both topk 0.15 natural': [0]}  # seeds of the longer runs
TUNED = {'adamw': 0.0025, 'muon': 0.01}  # the best of dev/docs/optimizers.md
EVERY = [4, 16]
LOCAL = {
    'Local': ({}, {'rate': 1}),
    'DiLoCo': ({}, {'rate': 0.7, 'momentum': 0.9, 'nesterov': True}),
    'Decaying': ({'inner_power': 0.5}, {'rate': 1}),
    'Dual': ({}, {'rate': RANKS ** 0.5}),
}
# name -> (run configuration, settings): bytes of an update of larger models
PLANS = {
    'mean': {'optimizer.communication': {'type': 'mean'}},
    'both natural': {'optimizer.communication': {'type': 'ef21', 'up': NATURAL, 'down': NATURAL}},
    'up topk 0.15 natural': {'optimizer.communication': {'type': 'ef21', 'up': TOPK}},
    'both topk 0.15 natural': {'optimizer.communication': {'type': 'ef21', 'up': TOPK, 'down': TOPK}},
    'local, every 16': {'optimizer.preset': 'muon', 'optimizer.communication': {'type': 'local'},
                        'optimizer.outer': {'type': 'lookahead', 'every': 16}},
}
PLANNED = {'LLaMA-124M': ('llama-124m-muon.json', {'batch': {'sequences': 256}}),
           'LLaMA-1B': ('llama-1b-muon.json', {})}
PLAN_RANKS = 8
LINKS = {'1 Gbit/s': 0.125, '25 Gbit/s': 3.125, '400 GB/s': 400}  # GB/s each way


def averaged(optimizer='ef21-muon', **others):
    """Gradients shared at every update. EF21 takes no clipping, so its baseline has none either."""
    own = {'optimizer.clip_norm': 0, 'optimizer.communication': {'type': 'mean'}} if optimizer == 'ef21-muon' else {}
    return {'optimizer.preset': optimizer, **own, **others}


def traffic(folder):
    """Bytes that all ranks sent up and down: in the first update, and in all later ones."""
    lines = [line for line in report.read_metrics(folder) if line['type'] == 'train']
    return {way: [lines[0][way], sum(line[way] for line in lines[1:])] for way in ('up_bytes', 'down_bytes')} if lines else {}


def curve(folder):
    losses = [line['loss'] for line in report.read_metrics(folder) if line['type'] == 'train']
    return [round(statistics.fmean(losses[i:i + POINT]), 4) for i in range(0, len(losses), POINT)]


class CommunicationStudy(Study):
    folder = pathlib.Path('runs') / 'communication_study'
    options, default_jobs = ('--device', 'cpu', '--gpus', str(RANKS)), 1

    def compare(self, name, cases, **settings):
        base = {'run.steps': STEPS, 'run.threads': 1, 'batch.sequences': BATCH,
                'schedule.warmup': {'type': 'cosine', 'steps': WARMUP, 'div': 100}, **settings}
        rows, folder = self.stage(name, {'set': base, 'cases': cases})
        for row in rows:
            row.update(traffic(folder / row['name']))
            if row['seed'] in ([], [0]):
                key = f'{row["case"]}, {row["point"][LR]:g}' if LR in row['point'] else row['case']
                self.results.setdefault('curves', {})[f'{name}/{key}'] = curve(folder / row['name'])
        return rows

    def rates(self):
        rows = self.compare('rates', {'mean': {'set': averaged(), 'grid': {LR: RATES}}})
        finished = [row for row in rows if row['val_loss'] is not None]
        self.rate = min(finished, key=lambda row: row['val_loss'])['point'][LR]

    def baseline(self):
        self.compare('baseline', {'mean': {'set': averaged(**{LR: self.rate}), 'grid': {SEEDS: [0, 1, 2]}}})

    def ef21(self):
        self.compare('ef21', {
            name: {'set': averaged(**{LR: self.rate, 'optimizer.communication': {'type': 'ef21', **communication}}),
                   'grid': {SEEDS: seeds}} for name, (communication, seeds) in COMPRESSED.items()})

    def kept(self):
        """The part of the square of the norm that messages carried, after a hundred updates: of one rank, on average."""
        kept = {}
        for name, (communication, _) in COMPRESSED.items():
            if 'up' not in communication:
                continue
            if self.runner.stopped:
                raise Stopped
            settings = averaged(**{LR: self.rate, 'optimizer.communication': {'type': 'ef21', **communication}})
            with tempfile.TemporaryDirectory() as folder:
                self.train({**settings, 'run.steps': 150, 'batch.sequences': BATCH}, RANKS, folder)
                lines = [line for line in report.read_metrics(pathlib.Path(folder) / 'run') if line['type'] == 'train']
            kept[name] = round(statistics.fmean(line['up_kept'] for line in lines[100:]), 4)
        self.results['kept'] = kept

    def delay(self):
        preset = json.loads((ROOT / 'configs' / 'optimizer' / 'ef21-muon.json').read_text(encoding='utf-8'))
        for group in preset['groups']:
            group['momentum']['beta'] = LESS_MOMENTUM
        cases = {}
        for name, communication in (('none', {'type': 'mean'}), (PRESET, {'type': 'ef21', 'up': TOPK})):
            common = averaged(**{LR: self.rate, 'optimizer.communication': communication})
            cases[f'beta {LESS_MOMENTUM}, {name}'] = {'set': {**common, 'optimizer.groups': preset['groups']}}
            if name != 'none':
                cases |= {f'rate {rate:g}, {name}': {'set': {**common, LR: rate}} for rate in RATES if rate != self.rate}
        self.compare('delay', cases)

    def longer(self):
        cases = {'none': {'set': averaged(**{LR: self.rate}), 'grid': {SEEDS: [0, 1, 2]}}}
        for name, seeds in LONG.items():
            communication = {'type': 'ef21', **COMPRESSED[name][0]}
            cases[name] = {'set': averaged(**{LR: self.rate, 'optimizer.communication': communication}),
                           'grid': {SEEDS: seeds}}
        self.compare('longer', cases, **{'run.steps': LONGER * STEPS})

    def mean(self):
        self.compare('mean', {optimizer: {'set': averaged(optimizer, **{LR: rate})} for optimizer, rate in TUNED.items()})

    def local(self):
        cases = {}
        for optimizer, rate in TUNED.items():
            for every in EVERY:
                for name, (communication, outer) in LOCAL.items():
                    cases[f'{optimizer}, {name}, {every}'] = {'set': averaged(optimizer, **{
                        LR: rate, 'optimizer.communication': {'type': 'local', **communication},
                        'optimizer.outer': {'type': 'lookahead', 'every': every, **outer}})}
        self.compare('local', cases)

    def fewer(self):
        cases = {}
        for every in EVERY:
            cases[f'muon, {every}'] = {'grid': {LR: [TUNED['muon'], 2 * TUNED['muon']]}, 'set': averaged('muon', **{
                'run.steps': round(STEPS / every), 'batch.sequences': BATCH * every, 'eval.batches': EVALUATED // every,
                'schedule.warmup': {'type': 'cosine', 'steps': max(2, round(WARMUP / every)), 'div': 100}})}
        self.compare('fewer', cases)

    def train(self, settings, ranks, folder):
        """A run that is not kept."""
        settings = {'eval.batches': 1, 'log.tensorboard': False, 'run.threads': 1, 'run.dir': folder + '/run', **settings}
        sets = [part for key, value in settings.items() for part in ('--set', f'{key}={json.dumps(value)}')]
        subprocess.run([self.program, 'train', '--config', HERE / 'base.json', '--device', 'cpu', '--gpus', str(ranks), *sets],
                       check=True, stdout=subprocess.DEVNULL)

    def processor_time(self, settings, ranks):
        """Seconds of processor time of a run, of all its ranks: other work on the machine hardly changes it."""
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        with tempfile.TemporaryDirectory() as folder:
            self.train(settings, ranks, folder)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime

    def an_update(self, settings, ranks, updates):
        """Milliseconds of an update: what a longer run takes more than a shorter one."""
        times = [self.processor_time({**settings, 'run.steps': steps}, ranks) for steps in (2, 2 + updates)]
        return round(1e3 * (times[1] - times[0]) / updates, 2)

    def speed(self):
        """Of four ranks, and of one rank with a larger model, whose updates are hardly more than the optimizer's."""
        small = {'schedule.warmup': {'type': 'none'}}
        large = {**small, 'batch.sequences': 1, 'model': {**json.loads(
            (ROOT / 'configs' / 'model' / 'llama-15m.json').read_text(encoding='utf-8'))['model'], 'seq_len': 16}}
        none = averaged()
        local = averaged('muon', **{'optimizer.communication': {'type': 'local'},
                                    'optimizer.outer': {'type': 'lookahead', 'every': 16}})
        cases = {'none': (small, none, RANKS), 'muon': (small, averaged('muon'), RANKS), 'muon, Local, 16': (small, local, RANKS),
                 'large/none': (large, none, 1)}
        for name in TIMED:
            sent = {**none, 'optimizer.communication': {'type': 'ef21', **COMPRESSED[name][0]}}
            cases[name] = (small, sent, RANKS)
            cases[f'large/{name}'] = (large, sent, 1)
        times = {name: [] for name in cases}
        for _ in range(SPEED_ROUNDS):
            for name, (model, settings, ranks) in cases.items():
                if self.runner.stopped:
                    raise Stopped
                times[name].append(self.an_update({**model, **settings}, ranks, 64 if ranks > 1 else 8))
        self.results['speed'] = times
        self.results['large_parameters'] = self.plan(HERE / 'base.json', large)['parameters']

    def plan(self, config, settings, *options):
        sets = [part for key, value in settings.items() for part in ('--set', f'{key}={json.dumps(value)}')]
        return json.loads(subprocess.run([self.program, 'plan', '--config', config, '--json', *options, *sets], check=True,
                                         capture_output=True, text=True).stdout)

    def plans(self):
        self.results['parameters'] = self.plan(HERE / 'base.json', {})['parameters']
        plans = {}
        for model, (file, changes) in PLANNED.items():
            for name, settings in PLANS.items():
                settings = {'optimizer.preset': 'ef21-muon', 'optimizer.clip_norm': 0, 'eval.every': 0,
                            'checkpoint.every': 0, **changes, **settings}
                known = {}
                for link, speed in LINKS.items():
                    plan = self.plan(ROOT / 'configs' / 'run' / file, settings, '--device', 'cuda', '--ranks',
                                     str(PLAN_RANKS), '--peak', '790', '--mfu', '0.4', '--link', str(speed))
                    known[link] = plan['scaling']['seconds']
                plans[f'{model}/{name}'] = {
                    **{key: plan[key] for key in ('parameters', 'tokens_per_update', 'up_bytes_per_update',
                                                  'down_bytes_per_update')},
                    'state_bytes': plan['memory']['parts']['optimizer state'],
                    'gradients_s': plan['scaling']['gradients_s'], 'seconds': known}
        self.results['plans'] = plans

    def run(self):
        self.results['ranks'] = RANKS
        for stage in (self.rates, self.baseline, self.ef21, self.kept, self.mean, self.local, self.fewer, self.delay,
                      self.longer, self.speed, self.plans):
            stage()


if __name__ == '__main__':
    sys.exit(main(sys.argv[1:], __doc__, CommunicationStudy, RESULTS, write_report))
