#!/usr/bin/env python3
"""The claims of arXiv 2602.05813 about its adaptive warm-up, tested at a size that a laptop can train.

    dev/study/warmup_study.py run [--jobs 2]     trains what is missing under runs/warmup_study (resumable; about
                                                 an hour on 2 cores), then writes dev/results/warmup_study.json
    dev/study/warmup_study.py report             the tables and pictures of dev/docs/warmup_study.md from that file

Stages, each a sweep (scripts/sweep.py) in a folder of its own:
  rates       three optimizers, four peak rates: the best of each, and its loss, are what the rest builds on
  warmups     seven lengths of a half-cosine warm-up; the adaptive one with our defaults, as published, and with
              the gap as its decay; 3 seeds
  separating  is it the feedback, or the shape? the rates of another seed's adaptive run, replayed; a half-cosine
              warm-up of the adaptive one's own length; same first rate and floor
  delta_star  the gap of the peak, by hand
  settings    the rule for delta_star without a jump, and a first rate of lr/5
  control     that first rate and the lengths found, as a half-cosine warm-up
  target      target losses from far too low to far too high
  noise       one sequence a batch
  pretrained  a first loss that is not that of random weights
  longer      four times the updates: does the cost of the adaptive warm-up grow with the run?
"""
import pathlib
import sys

from study import ROOT, Study, main, report  # noqa: I001
from study_report import write_report

RESULTS = ROOT / 'dev' / 'results' / 'warmup_study.json'
FOLDER = pathlib.Path('runs') / 'warmup_study'
RATES = {'Muon': ('muon', [0.003, 0.006, 0.012, 0.024]), 'Lion': ('lion', [0.00025, 0.0005, 0.001, 0.002]),
         'NSGD': ('nsgd', [0.0075, 0.015, 0.03, 0.06])}
SEEDS = 'run.seed,data.seed'
LENGTHS = [1, 5, 15, 40, 100, 200, 300]
HIGH = 4  # times the best rate: a fourth case, where the paper's Lion runs were
TRACE = 3  # every third update of a run is kept for pictures


def adaptive(target, **others):
    return {'type': 'adaptive', 'target_loss': target, **others}


class WarmupStudy(Study):
    folder = FOLDER

    def __init__(self, jobs, program):
        super().__init__(jobs, program)
        self.results['traces'] = {}

    def keep_traces(self, stage, folder, rows):
        """Of the first seed; of manual warm-ups one length is enough."""
        for row in rows:
            if row['seed'] != [0] or row['point'].get('schedule.warmup.steps', 40) != 40:
                continue
            lines = [line for line in report.read_metrics(folder / row['name']) if line['type'] == 'train']
            self.results['traces'][f'{stage}/{row["name"]}'] = {
                'every': TRACE, 'loss': [round(line['loss'], 4) for line in lines[::TRACE]],
                'lr': [float(f'{line["lr"]:.4g}') for line in lines[::TRACE]]}

    @staticmethod
    def folders(rows, folder, variant):
        """(case, seed) -> folder of the runs of a variant."""
        return {(row['case'].split('/')[0], row['seed'][0]): folder / row['name']
                for row in rows if row['case'].endswith(f'/{variant}')}

    def rates(self):
        """The best rate of each optimizer and a target loss 5 % below what it reached."""
        cases = {name: {'set': {'optimizer.preset': preset}, 'grid': {'optimizer.lr': rates}}
                 for name, (preset, rates) in RATES.items()}
        rows, _ = self.stage('rates', {'cases': cases})
        self.cases = {}
        for name, (preset, _) in RATES.items():
            best = min((row for row in rows if row['case'] == name and row['val_loss'] is not None),
                       key=lambda row: row['val_loss'])
            rate, loss = best['point']['optimizer.lr'], best['val_loss']
            self.cases[name] = {'preset': preset, 'lr': rate, 'loss': loss, 'target': round(0.95 * loss, 2)}
        lion = self.cases['Lion']
        high = next(row['val_loss'] for row in rows if row['case'] == 'Lion' and
                    row['point']['optimizer.lr'] == max(RATES['Lion'][1]))
        self.cases['Lion, high rate'] = {**lion, 'lr': HIGH * lion['lr'], 'loss': high}
        self.results['cases'] = self.cases

    def by_case(self, variants, names=None):
        """A sweep's `cases`, one for each optimizer and variant: what a variant sets may depend on the case."""
        cases = {}
        for name, case in self.cases.items():
            if names is None or name in names:
                for variant, part in variants(name, case).items():
                    cases[f'{name}/{variant}'] = {**part, 'set': {
                        'optimizer.preset': case['preset'], 'optimizer.lr': case['lr'], **part.get('set', {})}}
        return cases

    def warmups(self):
        def variants(name, case):
            nsgd = name == 'NSGD'
            published = {'schedule.warmup': adaptive(case['target'], delta_star='quadpack', max_fraction=1,
                                                     div=5 if nsgd else 100),
                         'schedule.compat': {'first_lr': 'peak', 'lag': True, 'late_decay': True}}
            if nsgd:
                published['optimizer.compat'] = {'momentum_init': 'parameters'}
            ours = {'schedule.warmup': adaptive(case['target'])}
            return {'cosine': {'grid': {'schedule.warmup.steps': LENGTHS}},
                    'adaptive': {'set': ours}, 'published': {'set': published},
                    'gap': {'set': {**ours, 'schedule.decay': {'type': 'gap', 'final_div': 1e4}}}}
        rows, folder = self.stage('warmups', {'cases': self.by_case(variants), 'grid': {SEEDS: [0, 1, 2]}})
        self.keep_traces('warmups', folder, rows)
        self.adaptive_runs = self.folders(rows, folder, 'adaptive')

    def separating(self):
        cases = {}
        for (name, seed), folder in self.adaptive_runs.items():
            own = len(report.warmup_rates(folder))
            other = report.warmup_rates(self.adaptive_runs[name, (seed + 1) % 3])
            for variant, warmup in (('replayed', {'type': 'rates', 'rates': other}),
                                    ('half-cosine', {'type': 'cosine', 'steps': own, 'div': 100})):
                case = self.cases[name]
                cases[f'{name}/{variant}/{seed}'] = {'grid': {SEEDS: [seed]}, 'set': {
                    'optimizer.preset': case['preset'], 'optimizer.lr': case['lr'], 'schedule.warmup': warmup}}
        rows, folder = self.stage('separating', {'cases': cases})
        self.keep_traces('separating', folder, rows)

    def delta_star(self):
        def variants(_, case):
            return {'by hand': {'set': {'schedule.warmup': adaptive(case['target'])},
                                'grid': {'schedule.warmup.delta_star': [0.25, 0.5, 1, 2, 3]}}}
        self.stage('delta_star', {'cases': self.by_case(variants), 'grid': {SEEDS: [0, 1]}})

    def settings(self):
        def variants(_, case):
            return {f'{rule}, div {div}': {'set': {
                        'schedule.warmup': adaptive(case['target'], delta_star=rule, div=div)}}
                    for rule, div in (('exact', 5), ('unweighted', 100), ('unweighted', 5))}
        rows, folder = self.stage('settings', {'cases': self.by_case(variants), 'grid': {SEEDS: [0, 1, 2]}})
        self.keep_traces('settings', folder, rows)
        self.short_ramps = self.folders(rows, folder, 'exact, div 5')

    def control(self):
        cases = {}
        for (name, seed), folder in self.short_ramps.items():
            case, own = self.cases[name], len(report.warmup_rates(folder))
            cases[f'{name}/half-cosine, div 5/{seed}'] = {'grid': {SEEDS: [seed]}, 'set': {
                'optimizer.preset': case['preset'], 'optimizer.lr': case['lr'],
                'schedule.warmup': {'type': 'cosine', 'steps': own, 'div': 5}}}
        self.stage('control', {'cases': cases})

    def target(self):
        def variants(_, case):
            targets = [0] + [round(part * case['loss'], 2) for part in (0.5, 0.8, 1, 1.25, 1.6, 2.2)]
            published = {'schedule.warmup': adaptive(0, delta_star='quadpack', max_fraction=1),
                         'schedule.compat': {'first_lr': 'peak', 'lag': True, 'late_decay': True}}
            return {'ours': {'set': {'schedule.warmup': adaptive(0)}, 'grid': {'schedule.warmup.target_loss': targets}},
                    'published, 0': {'set': published}}
        self.stage('target', {'cases': self.by_case(variants, ['Muon', 'Lion']), 'grid': {SEEDS: [0, 1]}})

    def noise(self):
        def variants(_, case):
            return {'cosine': {'grid': {'schedule.warmup.steps': [1, 40, 200]}},
                    'adaptive': {'set': {'schedule.warmup': adaptive(case['target'])},
                                 'grid': {'schedule.warmup.loss_ema': [0, 0.9, 0.98]}}}
        self.stage('noise', {'cases': self.by_case(variants, ['Muon', 'Lion']), 'set': {
            'batch.sequences': 1, 'eval.batches': 2048},
                             'grid': {SEEDS: [0, 1, 2]}})

    def pretrained(self):
        def variants(name, case):
            start = FOLDER / 'warmups' / f'{name}_cosine-seed0-steps15' / 'checkpoints' / 'step_00000600'
            set_ = {'init.from': str(start)}
            return {'cosine': {'set': set_, 'grid': {'schedule.warmup.steps': [1, 40, 200]}},
                    'adaptive': {'set': {**set_, 'schedule.warmup': adaptive(case['target'])}},
                    'target 10 % lower': {'set': {**set_, 'schedule.warmup': adaptive(round(0.9 * case['target'], 2))}}}
        self.stage('pretrained', {'cases': self.by_case(variants, ['Muon', 'Lion']), 'grid': {SEEDS: [10, 11]}})

    def longer(self):
        def variants(_, case):
            target = round(0.88 * case['loss'], 2)
            published = {'schedule.warmup': adaptive(target, delta_star='quadpack', max_fraction=1),
                         'schedule.compat': {'first_lr': 'peak', 'lag': True, 'late_decay': True}}
            return {'cosine': {'grid': {'schedule.warmup.steps': [15, 400]}},
                    'adaptive': {'set': {'schedule.warmup': adaptive(target)}}, 'published': {'set': published}}
        self.stage('longer', {'cases': self.by_case(variants, ['Muon', 'Lion']), 'set': {'run.steps': 2400},
                              'grid': {SEEDS: [0, 1]}})

    def run(self):
        for stage in (self.rates, self.warmups, self.separating, self.delta_star, self.settings, self.control, self.target,
                      self.noise, self.pretrained, self.longer):
            stage()


if __name__ == '__main__':
    sys.exit(main(sys.argv[1:], __doc__, WarmupStudy, RESULTS, write_report))
