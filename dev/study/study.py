"""What the studies share: stages of runs that go on where they were stopped, and one result file for all."""
import argparse
import json
import pathlib
import signal
import sys

HERE = pathlib.Path(__file__).resolve().parent
ROOT = HERE.parent.parent
sys.path[:0] = [str(ROOT / 'scripts')]

import sweep as sweeping  # noqa: E402
from sweeps import report  # noqa: E402
from sweeps.plan import SweepError, make_sweep, plan_runs  # noqa: E402

Stopped = sweeping.Stopped


class Study:
    """A study is a class with a `folder` for its runs and a method run() of stages. `options` of train_gpt train are
    those of all its runs, `default_jobs` of which run at a time."""
    options, default_jobs = (), 2

    def __init__(self, jobs, program):
        self.jobs, self.program = jobs, program
        self.results = {'stages': {}}
        self.runner = None

    def stop(self, *_):
        if self.runner is not None:
            self.runner.stop()

    def stage(self, name, given, jobs=None):
        """Trains a sweep; a run that fails (diverges) is a result too: its loss is null."""
        sweep = make_sweep({'config': 'base.json', **given}, name, HERE, (), (), name)
        runs = plan_runs(sweep)
        folder = self.folder / name
        folder.mkdir(parents=True, exist_ok=True)
        print(f'--- {name}: {len(runs)} runs', flush=True)
        self.runner = sweeping.Runner(self.program, folder, jobs or self.jobs, self.options)
        statuses = self.runner.train_all(runs)
        wrong = [run.name for run in runs if statuses[run.name] == 2]
        if wrong:
            raise SweepError(f'{folder / wrong[0]}.log: {report.last_words(folder / f"{wrong[0]}.log")}', 1)
        rows = report.collect(runs, folder)
        report.write(sweep, rows, folder)
        print((folder / 'table.txt').read_text(), end='', flush=True)
        self.results['stages'][name] = rows
        return rows, folder


def shown(results):
    """JSON with a line for each run and each value of other tables."""
    def block(lines, brackets='{}'):
        return brackets[0] + '\n' + ',\n'.join(lines) + '\n' + brackets[1]

    def table(values):
        return block([f'{json.dumps(name)}: {json.dumps(value)}' for name, value in values.items()])
    stages = [f'{json.dumps(name)}: {block([json.dumps(row) for row in rows], "[]")}'
              for name, rows in results['stages'].items()]
    rest = {name: table(value) if isinstance(value, dict) else json.dumps(value)
            for name, value in results.items() if name != 'stages'}
    parts = [f'{json.dumps(name)}: {text}' for name, text in {**rest, 'stages': block(stages)}.items()]
    return '{\n' + ',\n'.join(parts) + '\n}\n'


def data_identity():
    """What the text was: another release of the documentation is another text."""
    path = ROOT / 'data' / 'python-docs' / 'meta.json'
    try:
        meta = json.loads(path.read_text(encoding='utf-8'))
    except OSError as error:
        raise SweepError(f'{path}: {error.strerror}; run scripts/prepare_data.py python-docs first') from None
    return {'train_tokens': meta['train_tokens'], 'sha256': meta['files']['train.bin']['sha256']}


def main(argv, description, kind, results, write_report):
    """The command line of a study: run (then report), or report from the result file."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('what', choices=['run', 'report'])
    parser.add_argument('--jobs', type=int, default=kind.default_jobs, metavar='N',
                        help=f'runs at a time (default: {kind.default_jobs})')
    parser.add_argument('--program', metavar='FILE', help='default: $TRAIN_GPT or build/train_gpt')
    arguments = parser.parse_args(argv)
    try:
        if arguments.what == 'run':
            study = kind(arguments.jobs, sweeping.find_program(arguments.program))
            study.results['data'] = data_identity()
            for number in (signal.SIGINT, signal.SIGTERM):
                signal.signal(number, study.stop)
            study.run()
            results.write_text(shown(study.results), encoding='utf-8')
            print(f'{results.relative_to(ROOT)}: {sum(map(len, study.results["stages"].values()))} runs')
        write_report(json.loads(results.read_text(encoding='utf-8')), ROOT / 'dev' / 'docs')
    except sweeping.Stopped:
        print('stopped; the same command goes on from here', file=sys.stderr)
        return 3
    except SweepError as error:
        print(f'{sys.argv[0].rsplit("/", 1)[-1]}: {error}', file=sys.stderr)
        return error.status
    return 0
