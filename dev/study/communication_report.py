"""Tables and pictures of dev/docs/communication.md, from dev/results/communication_study.json alone. The page keeps its
prose: what stands between <!-- NAME --> and <!-- end NAME --> is written anew."""
import math
import statistics

from optimizer_report import LR, loss_of, number
from plot_run import RUN_COLORS, load_pyplot, save_figure
from study_report import fill, losses, markdown, paired, spread

WAYS = ('up_bytes', 'down_bytes')
PRESET = 'up topk 0.15 natural'
KEY_CURVES = ['ef21/up topk 0.15 natural', 'ef21/up columns 0.15 natural', 'ef21/up rank 4 natural',
              'ef21/both topk 0.15 natural']
OPTIMIZERS = ['adamw', 'muon']


def of(results, stage, case=None):
    return [row for row in results['stages'][stage] if case in (None, row['case'])]


def cases(results, stage):
    return list(dict.fromkeys(row['case'] for row in results['stages'][stage]))


def baseline(results):
    """The uncompressed runs: three seeds of the best rate."""
    return of(results, 'baseline')


def best_rate(results):
    return min(of(results, 'rates'), key=loss_of)


def a_rank(results, row, way):
    """Bytes that a rank sends in an update on average, without the first, in which EF21 sends everything."""
    return row[way][1] / (row['updates'] - 1) / results['ranks']


def saving(results, row, way):
    """Of a way, against gradients or weights of the same model whole at every update."""
    return a_rank(results, baseline(results)[0], way) / a_rank(results, row, way)


def total(row, way):
    return sum(row[way])


def against(results, rows, others):
    """Difference to the others, with its standard error where there are several seeds, and in spreads of the baseline."""
    difference, error = paired(rows, others)
    known = losses(baseline(results)).values()
    times = difference / (max(known) - min(known))
    return [f'{difference:+.3f}' + ('' if math.isnan(error) else f' ± {error:.3f}'), f'{times:+.1f}']


def loss_text(rows):
    return spread(rows) if len(rows) > 1 else f'{loss_of(rows[0]):.4f}'


def rates_table(results):
    best = best_rate(results)
    return markdown(['rate', 'validation loss (one seed)'],
                    [[number(row['point'][LR]), f'{loss_of(row):.4f}' + (' (the baseline)' if row == best else '')]
                     for row in of(results, 'rates')])


def ef21_lines(results):
    base = baseline(results)
    lines = [['none', loss_text(base), '', '', '1', '1', '']]
    for case in cases(results, 'ef21'):
        rows = of(results, 'ef21', case)
        lines.append([case, loss_text(rows), *against(results, rows, base),
                      *(f'{saving(results, rows[0], way):.3g}' for way in WAYS),
                      f'{results["kept"][case]:.2f}' if case in results['kept'] else ''])
    return lines


def ef21_table(results):
    return markdown(['compressed', 'validation loss (seeds)', 'against none', 'in spreads of none', 'saved up', 'saved down',
                     'kept by a message up'],
                    ef21_lines(results))


def delay_table(results):
    """Settings as lines: without compression, and with that of the preset."""
    lines = []
    for row in [*of(results, 'rates'), *of(results, 'delay')]:
        what = f'rate {row["point"][LR]:g}' if LR in row['point'] else row['case'].partition(', ')[0]
        if row['case'] not in ('mean', f'{what}, none'):
            continue
        plain, sent = [row], [other for other in of(results, 'delay') if other['case'] == f'{what}, {PRESET}']
        if not sent:  # the rate of the comparison
            plain, sent = baseline(results), of(results, 'ef21', PRESET)
        lines.append([what, loss_text(plain), loss_text(sent), against(results, sent, plain)[0]])
    return markdown(['setting', 'uncompressed', PRESET, 'difference'], lines)


def longer_table(results):
    base, lines = of(results, 'longer', 'none'), []
    for case in cases(results, 'longer'):
        rows = of(results, 'longer', case)
        short = '' if case == 'none' else against(results, of(results, 'ef21', case), baseline(results))[0]
        lines.append([case, loss_text(rows), '' if case == 'none' else against(results, rows, base)[0], short])
    return markdown(['compressed', 'validation loss (seeds)', 'against none', 'the same after a quarter of the updates'], lines)


def local_table(results):
    lines = []
    for optimizer in OPTIMIZERS:
        shared = of(results, 'mean', optimizer)
        lines.append([optimizer, 'shared at every update', '1', '1', loss_text(shared), ''])
        for case in cases(results, 'local'):
            rows = of(results, 'local', case)
            name, outer, every = case.split(', ')
            if name == optimizer:
                lines.append([name, outer, every, f'{saving(results, rows[0], "up_bytes"):.3g}', loss_text(rows),
                              against(results, rows, shared)[0]])
    return markdown(['optimizer', 'outer step', 'K', 'saved, each way', 'validation loss', 'against shared'], lines)


def fewer_table(results):
    lines = []
    for case in cases(results, 'fewer'):
        optimizer, every = case.split(', ')
        shared = of(results, 'mean', optimizer)
        for row in of(results, 'fewer', case):
            apart = [other for name in cases(results, 'local') if name.startswith(f'{optimizer}, ') and
                     name.endswith(f', {every}') for other in of(results, 'local', name)]
            best = min(apart, key=loss_of)
            lines.append([optimizer, every, str(row['updates']), number(row['point'][LR]), f'{loss_of(row):.4f}',
                          against(results, [row], shared)[0],
                          f'{loss_of(best):.4f} ({best["case"].split(", ")[1]})'])
    return markdown(['optimizer', 'batches as one', 'updates', 'rate', 'validation loss', 'against shared',
                     'best of local steps at this traffic'], lines)


def an_element(results, name):
    """Nanoseconds that compressing takes an element and update, or None where it was not timed: rounds."""
    times = results['speed']
    if f'large/{name}' not in times:
        return None
    return [(own - none) * 1e6 / results['large_parameters'] for own, none in
            zip(times[f'large/{name}'], times['large/none'])]


def speed_table(results):
    def rounds(values):
        return f'{min(values):.3g} to {max(values):.3g}'
    lines = []
    for name, values in results['speed'].items():
        if name.startswith('large/'):
            continue
        elements = an_element(results, name)
        lines.append([name, rounds(values), rounds([own / none for own, none in zip(values, results['speed']['none'])]),
                      rounds(elements) if elements and name != 'none' else ''])
    return markdown(['communication', 'ms an update of 4 ranks together', 'over none', 'compressing: ns an element'], lines)


def shown_seconds(value):
    return f'{1e3 * value:.3g} ms' if value < 1 else f'{value:.3g} s'


def links_table(results):
    lines = []
    for name, plan in results['plans'].items():
        model, communication = name.split('/')
        times = []
        for link, own in plan['seconds'].items():
            whole = results['plans'][f'{model}/mean']['seconds'][link]
            times.append(shown_seconds(own) + ('' if communication == 'mean' else f' ({whole / own:.3g}x)'))
        sizes = [f'{value:.0f}' if value >= 100 else f'{value:.3g}' for value in
                 (plan[key] / 1e6 for key in ('up_bytes_per_update', 'down_bytes_per_update', 'state_bytes'))]
        elements = None if communication == 'mean' else an_element(results, communication)
        lines.append([model, communication, *sizes, *times,
                      shown_seconds(statistics.median(elements) * 1e-9 * plan['parameters']) if elements else ''])
    links = next(iter(results['plans'].values()))['seconds']
    return markdown(['model', 'communication', 'MB up', 'MB down', 'MB of states', *links,
                     'compressing, one thread'], lines)


def tables(results):
    return {'rates': rates_table(results), 'ef21': ef21_table(results), 'local': local_table(results),
            'fewer': fewer_table(results), 'delay': delay_table(results),
            'longer': longer_table(results), 'speed': speed_table(results), 'links': links_table(results)}


def draw_bytes(pyplot, results, path):
    """Final loss against the bytes that went up in the whole run: every run is a point."""
    figure, axes = pyplot.subplots(figsize=(9, 5.5), constrained_layout=True)
    groups = [('ef21-muon, uncompressed', baseline(results), 's'),
              *((f'ef21-muon, {case}', of(results, 'ef21', case), 'o') for case in cases(results, 'ef21')
                if not case.startswith('down')),
              *((f'{name}, shared', of(results, 'mean', name), 's') for name in OPTIMIZERS),
              *((f'{name}, local {every}', [row for case in cases(results, 'local') if case.startswith(f'{name}, ') and
                                            case.endswith(f', {every}') for row in of(results, 'local', case)], '^')
                for name in OPTIMIZERS for every in (4, 16)),
              ('muon, fewer updates', of(results, 'fewer'), 'x')]
    for index, (label, rows, marker) in enumerate(groups):
        color = RUN_COLORS[index % len(RUN_COLORS)]
        axes.plot([total(row, 'up_bytes') / 1e6 for row in rows], [loss_of(row) for row in rows], marker, color=color,
                  linestyle='none', markersize=6, markerfacecolor='none' if index >= len(RUN_COLORS) else color, label=label)
    known = losses(baseline(results)).values()
    axes.axhspan(min(known), max(known), color='#555555', alpha=0.15, linewidth=0)
    axes.set(xscale='log', xlabel='MB sent up by all ranks in the run', ylabel='final validation loss',
             title='300 updates on 4 ranks; grey: seeds of ef21-muon without compression')
    axes.set_xticks([30, 100, 300, 1000], ['30', '100', '300', '1000'])
    axes.legend(fontsize=7, loc='center left', bbox_to_anchor=(1, 0.5))
    save_figure(pyplot, figure, path)


def draw_curves(pyplot, results, path):
    curves = results['curves']
    base = curves['baseline/mean']
    panels = {'EF21 (ef21-muon)': [('uncompressed', base), *((name.split('/')[1], curves[name]) for name in KEY_CURVES)]}
    for optimizer in OPTIMIZERS:
        panels[f'{optimizer}: K = 16 local updates'] = [('shared', curves[f'mean/{optimizer}'])] + [
            (name.split(', ')[1], curves[name]) for name in curves if name.startswith(f'local/{optimizer}, ') and
            name.endswith(', 16')]
    figure, axes = pyplot.subplots(1, len(panels), figsize=(13, 4.2), sharey=True, constrained_layout=True)
    for panel, (title, lines) in zip(axes, panels.items()):
        for color, (label, values) in zip(RUN_COLORS, lines):
            panel.plot([10 * (i + 1) for i in range(len(values))], values, color=color, linewidth=1.3, label=label)
        panel.set(title=title, xlabel='update', ylim=(1.6, 3.6))
        panel.legend(fontsize=8)
    axes[0].set_ylabel('training loss (means of 10 updates, one seed)')
    save_figure(pyplot, figure, path)


def write_report(results, folder):
    page = folder / 'communication.md'
    page.write_text(fill(page.read_text(encoding='utf-8'), tables(results)), encoding='utf-8')
    pyplot = load_pyplot()
    for name, draw in (('bytes', draw_bytes), ('curves', draw_curves)):
        draw(pyplot, results, folder / 'figures' / f'communication_{name}.png')
