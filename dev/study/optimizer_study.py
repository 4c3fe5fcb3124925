#!/usr/bin/env python3
"""Every optimizer preset on one small model, tuned alike.

    dev/study/optimizer_study.py run [--jobs 2]    trains what is missing under runs/optimizer_study (resumable; about
                                                   an hour on 2 cores), then writes dev/results/optimizer_study.json
    dev/study/optimizer_study.py report            the tables and pictures of dev/docs/optimizers.md from that file

Stages, each a sweep (scripts/sweep.py) in a folder of its own:
  rates      every preset at four peak rates, a factor of two apart
  ends       two more rates for those whose best was the lowest or the highest of the four
  seeds      two more seeds at the best rate
  coupling   Muon: rates against steps of Newton-Schulz, two coefficient sets, two momenta (inexact Muon's experiment)
  exponent   steepest descent in Schatten norms from p = 1.5 to infinity, three rates each
  drop       eight layers, one run at a time: Drop-Muon against the same optimizer on all layers, loss over time
  measured   (L0, L1) of every matrix along two runs: by the same batch, and by another one as published
  fitted     Gluon with the constants of that fit, by the same batch and by another one
  speed      the time of an update of every preset, in turns (bench train)
"""
import json
import pathlib
import subprocess
import sys

from study import HERE, ROOT, Stopped, Study, main, report  # noqa: I001
from optimizer_report import write_report

RESULTS = ROOT / 'dev' / 'results' / 'optimizer_study.json'
STEPS = 300
SPEED_ROUNDS = 5
SEEDS = 'run.seed,data.seed'

# preset -> its lowest rate; the others are 2, 4 and 8 times that.
RATES = {'adamw': 0.0025, 'lion': 0.0005, 'signum': 0.0005, 'nsgd': 0.015, 'muon': 0.005, 'muon-kj': 0.015,
         'scion': 2**-13, 'scion-unconstrained': 2**-13, 'scion-light': 2**-13, 'soda': 2**-13, 'gluon': 0.5,
         'clipped-scion': 0.05, 'inexact-muon': 0.01, 'drop-muon': 0.005, 'lionmuon': 0.005, 'schatten': 0.01,
         'normuon': 0.005, 'muon-clip': 0.005}
# Published without clipping.
UNCLIPPED = {'scion', 'scion-unconstrained', 'scion-light', 'soda', 'gluon', 'clipped-scion'}
COUPLING_STEPS = {'jordan': [1, 2, 3, 5], 'polar-express': [3, 5, 8]}


def settings(preset, **others):
    return {'optimizer.preset': preset, 'optimizer.clip_norm': 0 if preset in UNCLIPPED else 0.5, **others}


def muon_groups(coefficients, steps, beta):
    """Muon with an average as its momentum, and Adam on the rest as in the preset."""
    rest = json.loads((ROOT / 'configs' / 'optimizer' / 'muon.json').read_text(encoding='utf-8'))['groups'][1]
    return [{'match': {'role': 'matrix'}, 'momentum': {'type': 'ema', 'beta': beta},
             'norm': {'type': 'spectral', 'coefficients': coefficients, 'steps': steps},
             'radius': '0.2*sqrt(max(m,n))', 'decay': 'decoupled'}, rest]


class OptimizerStudy(Study):
    folder = pathlib.Path('runs') / 'optimizer_study'
    base = {'run.steps': STEPS, 'schedule.warmup': {'type': 'cosine', 'steps': 15, 'div': 100}}

    def compare(self, name, cases, **others):
        return self.stage(name, {'set': self.base, 'cases': cases}, **others)

    def rates(self):
        rows, folder = self.compare('rates', {
            preset: {'set': settings(preset), 'grid': {'optimizer.lr': [lowest * 2**i for i in range(4)]}}
            for preset, lowest in RATES.items()})
        self.tried = rows
        self.add_memory(rows, folder)

    def best(self, preset):
        rows = [row for row in self.tried if row['case'] == preset and row['val_loss'] is not None]
        return min(rows, key=lambda row: row['val_loss'])['point']['optimizer.lr']

    def ends(self):
        cases = {}
        for preset, lowest in RATES.items():
            best = self.best(preset)
            more = {lowest: [lowest / 2, lowest / 4], 8 * lowest: [16 * lowest, 32 * lowest]}.get(best)
            if more:
                cases[preset] = {'set': settings(preset), 'grid': {'optimizer.lr': more}}
        if cases:
            self.tried = self.tried + self.compare('ends', cases)[0]

    def seeds(self):
        self.compare('seeds', {preset: {'set': settings(preset, **{'optimizer.lr': self.best(preset)}),
                                        'grid': {SEEDS: [1, 2]}} for preset in RATES})

    def add_memory(self, rows, folder):
        """State bytes a parameter as `plan` counts them, which is what a run takes."""
        memory = {}
        for row in rows:
            if row['case'] in memory:
                continue
            config = folder / row['name'] / 'run_config.json'
            plan = json.loads(subprocess.run([self.program, 'plan', '--config', config, '--json'], check=True,
                                             capture_output=True, text=True).stdout)
            memory[row['case']] = {'memory': plan['memory'], 'parameters': plan['parameters']}
        self.results['memory'] = memory

    def coupling(self):
        cases = {}
        for beta, sets in ((0.95, COUPLING_STEPS), (0.8, {'jordan': [1, 5]})):
            for coefficients, counts in sets.items():
                for steps in counts:
                    cases[f'{coefficients} {steps}, {beta}'] = {
                        'set': settings('muon', **{'optimizer.groups': muon_groups(coefficients, steps, beta)}),
                        'grid': {'optimizer.lr': [0.01, 0.02, 0.04, 0.08]}}
        self.compare('coupling', cases)

    def exponent(self):
        """The preset schatten with other exponents; infinity by Jacobi rotations too, not by Newton-Schulz."""
        preset = json.loads((ROOT / 'configs' / 'optimizer' / 'schatten.json').read_text(encoding='utf-8'))
        cases = {}
        for p in (1.5, 2, 3, 5, 9, 'inf'):
            groups = json.loads(json.dumps(preset['groups']))
            groups[0]['norm']['p'] = p
            cases[f'p = {p}'] = {'set': settings('schatten', **{'optimizer.groups': groups}),
                                 'grid': {'optimizer.lr': [0.0025, 0.005, 0.01]}}
        self.compare('exponent', cases)

    def drop(self):
        deep = {'model.n_layer': 8, 'eval.every': 25, 'eval.batches': 64}
        cases = {}
        for name, sampling in (('all layers', {'type': 'all'}), ('progressive', {'type': 'progressive'})):
            for rate in (0.01, 0.02):
                cases[f'{name}, {rate:g}'] = {'set': settings('drop-muon', **deep, **{
                    'optimizer.sampling': sampling, 'optimizer.lr': rate})}
        rows, folder = self.compare('drop', cases, jobs=1)
        curves = {}
        for row in rows:
            lines = report.read_metrics(folder / row['name'])
            seconds = [line['step_ms'] / 1e3 for line in lines if line['type'] == 'train']
            # The median step, not the sum: other work on the machine comes and goes.
            curves[row['case']] = {'val': [[line['step'], round(line['loss'], 4)] for line in lines
                                           if line['type'] == 'val'],
                                   'step_ms': [round(1e3 * s, 1) for s in seconds]}
        self.results['drop'] = curves

    def measured(self):
        cases = {preset: {'set': settings(preset, **{'optimizer.lr': self.best(preset), 'smoothness.every': 10})}
                 for preset in ('gluon', 'scion-unconstrained')}
        rows, folder = self.compare('measured', cases)
        self.fits = {}
        for row in rows:
            fit = folder / f'{row["name"]}.fit.json'
            subprocess.run([self.program, 'smoothness', '--run', folder / row['name'], '--layers', '--out', fit],
                           check=True, stdout=subprocess.DEVNULL)
            self.fits[row['case']] = json.loads(fit.read_text(encoding='utf-8'))['layers']
        self.results['layers'] = {f'{case}/{block}': values for case, blocks in self.fits.items()
                                  for block, values in blocks.items()}

    def fitted(self):
        """Gluon's steps with the constants that were measured along its own tuned run."""
        preset = json.loads((ROOT / 'configs' / 'optimizer' / 'gluon.json').read_text(encoding='utf-8'))
        cases = {}
        for source, keys in (('same batch', ('L0', 'L1')), ('other batch', ('L0_other', 'L1_other'))):
            layers = {block: [values[key] for key in keys] for block, values in self.fits['gluon'].items()}
            groups = json.loads(json.dumps(preset['groups']))
            role_of = {'matrix': lambda b: 'proj' in b, 'gain': lambda b: 'norm' in b,
                       'any': lambda b: 'embed' in b}
            for group in groups:
                mine = {block: value for block, value in layers.items() if role_of[group['match']['role']](block)}
                group['step'] = {'type': 'gluon', 'layers': mine}
            cases[source] = {'set': settings('gluon', **{'optimizer.groups': groups}),
                             'grid': {'optimizer.lr': [0.125, 0.5, 2, 8]}}
        self.compare('fitted', cases)

    def speed(self):
        """Milliseconds of an update, one thread; presets take turns, so that other work meets all alike."""
        times = {preset: [] for preset in RATES}
        for _ in range(SPEED_ROUNDS):
            for preset, values in times.items():
                if self.runner.stopped:
                    raise Stopped
                sets = [part for key, value in {**settings(preset), 'optimizer.lr': self.best(preset)}.items()
                        for part in ('--set', f'{key}={json.dumps(value)}')]
                lines = subprocess.run([self.program, 'bench', 'train', '--config', HERE / 'base.json', *sets, '--steps', '10',
                                        '--threads', '1', '--json'], check=True, capture_output=True, text=True).stdout
                step = next(line for line in map(json.loads, lines.splitlines()) if line['what'] == 'train')
                values.append(round(step['ms'], 2))
        self.results['speed'] = times

    def run(self):
        for stage in (self.rates, self.ends, self.seeds, self.coupling, self.drop, self.measured, self.fitted,
                      self.exponent, self.speed):
            stage()


if __name__ == '__main__':
    sys.exit(main(sys.argv[1:], __doc__, OptimizerStudy, RESULTS, write_report))
