"""Gradient estimators, EF21, local and outer steps: whole runs of the program against dev/reference/communication.py.

Every case trains a tiny model in fp64 for 20 updates, on real ranks where there are several, and compares the loss of
every update and the last weights with the reference, which was written from the equations alone. Both compute in fp64,
so they differ by the rounding of sums in another order; no case has choices (signs, largest elements, powers of two)
so close to a tie that rounding decides.
"""
import importlib.util
import json
import sys
import unittest

from cli import ROOT, CliTest, long, merge, write_tokens

sys.path.insert(0, str(ROOT / 'dev' / 'reference'))
HAVE_NUMPY = importlib.util.find_spec('numpy') is not None
if HAVE_NUMPY:
    import communication
    import compressors
    import numpy as np
    import safetensors_io

MODEL = {'n_layer': 2, 'n_head': 2, 'n_kv_head': 1, 'd_model': 16, 'd_ff': 24, 'vocab_size': 64, 'seq_len': 8}
TOLERANCE = 1e-9
SPECTRAL = {'type': 'spectral', 'coefficients': 'jordan', 'steps': 5}


def groups(momentum, rest=None, gains=None):
    """Spectral matrices, and all else normalised, with one momentum everywhere unless others are given."""
    rest = rest or momentum
    gains = gains or rest
    return [{'match': {'role': 'matrix'}, 'momentum': momentum, 'norm': SPECTRAL, 'radius': '0.2*sqrt(max(m,n))',
             'decay': {'type': 'decoupled', 'weight_decay': 0.1}},
            {'match': {'role': 'gain'}, 'momentum': gains, 'norm': {'type': 'rms'}, 'lr_scale': 0.3},
            {'match': {'role': 'any'}, 'momentum': rest, 'norm': {'type': 'frobenius'}, 'lr_scale': 10}]


EMA = {'type': 'ema', 'beta': 0.9}
ADAM = {'type': 'adam', 'beta1': 0.9, 'beta2': 0.95}
SIGN = [{'match': {'role': 'any'}, 'momentum': EMA, 'norm': {'type': 'sign'}, 'lr_scale': 0.1}]
FROBENIUS = [{'match': {'role': 'any'}, 'momentum': EMA, 'norm': {'type': 'frobenius'}, 'lr_scale': 3}]
IGT, STORM = {'type': 'igt'}, {'type': 'storm', 'scale': 0.5}


def hessian(**settings):
    return {'type': 'hessian', 'scale': 0.5, **settings}


def ef21(up=None, down=None):
    return {'type': 'ef21', **({'up': up} if up else {}), **({'down': down} if down else {})}


def top(fraction=0.3, **more):
    return {'type': 'topk', 'fraction': fraction, **more}


def rank(number=2, **more):
    return {'type': 'rank', 'rank': number, **more}


@unittest.skipUnless(HAVE_NUMPY, 'this Python has no NumPy (package python3-numpy)')
class CommunicationTest(CliTest):
    def setUp(self):
        super().setUp()
        write_tokens(self.folder / 'data' / 'train.bin', 3000)
        self.tokens = np.fromfile(self.folder / 'data' / 'train.bin', '<u2')
        self.weights = self.first_weights()
        self.runs = 0
        (self.folder / 'init').mkdir()
        safetensors_io.save(self.folder / 'init' / 'model.safetensors', self.weights)
        (self.folder / 'init' / 'config.json').write_text(json.dumps({
            'model_type': 'llama', 'hidden_size': 16, 'intermediate_size': 24, 'num_hidden_layers': 2,
            'num_attention_heads': 2, 'num_key_value_heads': 1, 'vocab_size': 64, 'max_position_embeddings': 8,
            'rms_norm_eps': 1e-5, 'rope_theta': 10000.0, 'tie_word_embeddings': True}))
        self.plain = {}

    @staticmethod
    def first_weights():
        """Large enough for attention and SwiGLU to be far from linear."""
        rng = np.random.default_rng(3)
        shapes = {'self_attn.q': (16, 16), 'self_attn.k': (8, 16), 'self_attn.v': (8, 16), 'self_attn.o': (16, 16),
                  'mlp.gate': (24, 16), 'mlp.up': (24, 16), 'mlp.down': (16, 24)}
        tensors = {'model.embed_tokens.weight': 0.5 * rng.standard_normal((64, 16)),
                   'model.norm.weight': 1 + 0.1 * rng.standard_normal(16)}
        for layer in range(2):
            prefix = f'model.layers.{layer}.'
            for name, shape in shapes.items():
                tensors[f'{prefix}{name}_proj.weight'] = 0.15 * rng.standard_normal(shape)
            for name in ('input_layernorm', 'post_attention_layernorm'):
                tensors[f'{prefix}{name}.weight'] = 1 + 0.1 * rng.standard_normal(16)
        return {name: value.astype(np.float32) for name, value in tensors.items()}

    def configuration(self, optimizer, ranks, changes):
        return merge({
            'run': {'name': 'test', 'steps': 20, 'threads': 1, 'device': 'cpu', 'seed': 5}, 'model': MODEL,
            'init': {'from': 'init'}, 'batch': {'sequences': 6, 'micro_batch': 1 if ranks > 1 else 3},
            'data': {'train': ['data/train.bin'], 'val': ['data/val.bin'], 'compat': {'order': 'numpy'}},
            'precision': {'compute': 'fp64'}, 'eval': {'batches': 1}, 'log': {'tensorboard': False},
            'optimizer': {'lr': 0.02, **optimizer}}, changes)

    def expected(self, config, ranks):
        return communication.run(config, communication.parameter_order(config, self.weights), self.tokens, ranks)

    def differs_from_plain(self, config, losses):
        """The case does something: the plain run of its groups is another."""
        plain = {key: value for key, value in communication.with_preset(config['optimizer']).items()
                 if key not in ('estimator', 'communication', 'outer')}
        key = json.dumps(plain)
        if key not in self.plain:
            self.plain[key] = self.expected({**config, 'schedule': {}, 'optimizer': plain}, 1)[0]
        return max(abs(a - b) for a, b in zip(losses, self.plain[key])) > 1e-4

    def check(self, optimizer, ranks=1, plain=False, **changes):
        config = self.configuration(optimizer, ranks, changes)
        self.runs += 1
        run = f'run{self.runs}'
        (self.folder / 'config.json').write_text(json.dumps(config))
        self.train('--set', f'run.dir={run}', *(('--gpus', ranks, '--device', 'cpu') if ranks > 1 else ()))
        found = [line['loss'] for line in self.metrics(run, 'train')]
        losses, weights = self.expected(config, ranks)
        self.assertEqual(len(found), len(losses))
        for k, (ours, theirs) in enumerate(zip(losses, found)):
            self.assertLess(abs(ours / theirs - 1), TOLERANCE, f'update {k}: expected {ours}, found {theirs}')
        last = safetensors_io.load(self.checkpoint(config['run']['steps'], run) / 'model.safetensors')
        for name, value in weights.items():
            self.assertLess(np.abs(value - last[name]).max(), TOLERANCE, name)
        self.assertNotEqual(self.differs_from_plain(config, losses), plain)


@unittest.skipUnless(HAVE_NUMPY, 'this Python has no NumPy (package python3-numpy)')
class ReferenceTest(unittest.TestCase):
    """The reference itself, where the answer is known in another form."""

    def follow(self, settings, beta, first=0.0):
        """Averages of the estimates along a path over 0.5 x^T H x, and the path; noise differs by batch and point."""
        rng = np.random.default_rng(1)
        h = rng.standard_normal((5, 5))
        h = h + h.T
        points = [{'x': x} for x in rng.standard_normal((6, 5))]

        def gradient(y, batch):
            return 0.0, {'x': h @ y['x'] + batch}

        estimator = communication.Estimator(settings, lambda k: beta, seed=3)
        noise, averages = rng.standard_normal((6, 5)) * settings.get('noise', 0.0), []
        for k, x in enumerate(points):
            _, g = estimator.estimate(k, x, communication.Draw(noise[k], noise[k] + 1), gradient)
            old = averages[-1] if averages else first * g['x']
            averages.append(beta * old + (1 - beta) * g['x'])
        return h, [x['x'] for x in points], noise, averages

    def test_storm_is_its_recursion(self):
        """v+ = g(x+; b) + beta (v - g(x; b))."""
        h, x, noise, averages = self.follow({'type': 'storm', 'noise': 1.0}, 0.8)
        for k in range(1, 6):
            v = h @ x[k] + noise[k] + 0.8 * (averages[k - 1] - h @ x[k - 1] - noise[k])
            self.assertLess(np.abs(averages[k] - v).max(), 1e-12)

    def test_on_a_quadratic_all_corrections_are_exact(self):
        """From the first gradient on, averages without noise are the gradient at the last point."""
        for settings in ({'type': 'igt'}, {'type': 'storm'}, {'type': 'hessian'}, {'type': 'hessian', 'step': 0.7},
                         {'type': 'hessian', 'difference': 'segment'}):
            h, x, _, averages = self.follow(settings, 0.8, first=1.0)
            self.assertLess(np.abs(averages[5] - h @ x[5]).max(), 1e-11, settings)

    def test_clips(self):
        """With limits that no part reaches nothing changes; with small ones the parts have these lengths."""
        settings = {'type': 'hessian', 'noise': 1.0}
        free, loose = (self.follow({**settings, **more}, 0.5)[3]
                       for more in ({}, {'clip': 1e6, 'clip_correction': 1e6}))
        self.assertLess(np.abs(np.array(free) - loose).max(), 1e-12)
        _, x, _, averages = self.follow({**settings, 'clip': 0.25, 'clip_correction': 1e-9}, 0.5)
        self.assertAlmostEqual(np.linalg.norm(averages[0]), 0.125)
        self.assertAlmostEqual(np.linalg.norm(averages[1] - averages[0] / 2), 0.125)
        _, x, _, averages = self.follow({**settings, 'clip': 1e-9, 'clip_correction': 0.25}, 0.5)
        self.assertAlmostEqual(np.linalg.norm(averages[1]), 0.125 * np.linalg.norm(x[1] - x[0]))

    def test_compressors(self):
        rng = np.random.default_rng(2)
        x = rng.standard_normal((6, 9))
        self.assertEqual(compressors.natural(np.array([1.0, 1.49, 1.5, -3.1, 0.0, -0.7])).tolist(),
                         [1.0, 1.0, 2.0, -4.0, 0.0, -0.5])
        low = np.outer(x[0], x[1, :6]).T
        for settings, alpha in (({'type': 'topk', 'fraction': 0.3}, 0.3), ({'type': 'columns', 'fraction': 0.3}, 0.3),
                                ({'type': 'natural'}, 8 / 9), ({'type': 'rank', 'rank': 2, 'natural': True}, 0.0)):
            error = compressors.Compressor(settings, 1)(x, 'x', {}) - x
            self.assertLess((error**2).sum(), (1 - alpha) * (x**2).sum(), settings)
        state, sender = {}, compressors.Compressor({'type': 'rank', 'rank': 1}, 1)
        self.assertLess(np.abs(sender(low, 'x', state) - low).max(), 1e-12)
        for _ in range(300):  # the power method finds the largest direction
            sent = sender(x, 'x', state)
        u, s, vt = np.linalg.svd(x)
        self.assertLess(np.abs(sent - s[0] * np.outer(u[:, 0], vt[0])).max(), 1e-6)


class PlainTest(CommunicationTest):
    def test_plain_runs(self):
        for name, chosen, ranks in (('frobenius', FROBENIUS, 1), ('sign', SIGN, 1),
                                    ('muon', groups({'type': 'nesterov', 'beta': 0.9}, ADAM), 3)):
            with self.subTest(name, ranks=ranks):
                self.check({'groups': chosen, 'clip_norm': 1.0}, ranks, plain=True)


class EstimatorTest(CommunicationTest):
    CASES = {'igt': {'estimator': IGT, 'groups': groups(EMA)},
             'igt, beta of its own': {'estimator': {'type': 'igt', 'beta': 0.5}, 'groups': groups(ADAM)},
             'igt, clipped': {'estimator': {**IGT, 'clip': 0.5}, 'groups': groups(EMA)},
             'plain, clipped': {'estimator': {'type': 'plain', 'clip': 0.5},
                                'groups': groups({'type': 'heavy_ball', 'beta': 0.9}, ADAM)},
             'storm': {'estimator': STORM, 'groups': groups(EMA), 'decay': 'start'},
             'storm, sign': {'estimator': {'type': 'storm'}, 'groups': SIGN},
             'storm, clipped': {'estimator': {**STORM, 'clip': 1.0, 'clip_correction': 2.0}, 'groups': FROBENIUS,
                                'clip_norm': 2.0},
             'central': {'estimator': hessian(), 'groups': groups(EMA, ADAM), 'clip_norm': 0.5},
             'central, same batch': {'estimator': hessian(batch='same', step=0.3), 'groups': FROBENIUS},
             'central, clipped': {'estimator': hessian(clip=1.0, clip_correction=2.0), 'groups': FROBENIUS},
             'segment': {'estimator': hessian(difference='segment'), 'groups': groups(EMA)},
             'segment, same batch': {'estimator': hessian(difference='segment', batch='same'), 'groups': groups(EMA)},
             'page': {'estimator': {'type': 'page', 'small': 3}, 'groups': groups(EMA)},
             'page, half large': {'estimator': {'type': 'page', 'small': 3, 'probability': 0.5},
                                  'groups': groups({'type': 'none'}, ADAM)}}

    def check_all(self, cases, ranks, **changes):
        for name in cases:
            with self.subTest(name, ranks=ranks):
                self.check(self.CASES[name], ranks, **changes)

    @long
    def test_ranks(self):
        """The numbers of a rank or several: the same reference."""
        self.check_all(['igt', 'storm, clipped', 'central', 'segment'], 2)
        self.check_all(['page'], 3)


class Ef21Test(CommunicationTest):
    def test_up(self):
        for name, up in {'topk': top(), 'columns': {'type': 'columns', 'fraction': 0.4}, 'rank': rank(),
                         'natural': {'type': 'natural'}}.items():
            with self.subTest(name):
                self.check({'groups': groups(EMA), 'communication': ef21(up)}, 3)

    def test_nothing_compressed_is_the_plain_run(self):
        self.check({'groups': groups(EMA), 'communication': ef21()}, 3, plain=True)

    @long
    def test_down(self):
        for name, way in {'topk': ef21(None, top()), 'rank': ef21(None, rank()), 'both': ef21(top(), rank()),
                          'both, nine bits': ef21(rank(natural=True), top(natural=True))}.items():
            with self.subTest(name):
                self.check({'groups': groups(EMA, ADAM), 'communication': way}, 3)

    def test_one_rank(self):
        self.check({'groups': groups(EMA), 'communication': ef21(top(), rank())}, 1)

    @long
    def test_outer_step(self):
        """It is the server's; RAPP's next update starts there, not at the weights that the ranks hold."""
        for kind in ('lookahead', 'rapp'):
            with self.subTest(kind):
                self.check({'groups': groups(EMA), 'communication': ef21(top(), top()),
                            'outer': {'type': kind, 'every': 4}}, 3)

    def test_three_matrices_of_attention(self):
        self.check({'groups': groups(EMA), 'qkv': 'split', 'decay': 'start',
                    'communication': ef21(rank(1), rank(1))}, 3)


class LocalTest(CommunicationTest):
    def check_local(self, chosen, every=4, inner_power=0, ranks=3, outer=None, **more):
        self.check({'groups': chosen, 'communication': {'type': 'local', 'inner_power': inner_power},
                    'outer': {'type': 'lookahead', 'every': every, **(outer or {})}, **more}, ranks)

    @long
    def test_local_steps(self):
        muon = groups({'type': 'nesterov', 'beta': 0.9}, ADAM)
        decay = {'type': 'decoupled', 'weight_decay': 0.1}
        with self.subTest('adamw, clipped by norms of each'):
            self.check_local([{'match': {'role': 'any'}, 'momentum': ADAM, 'decay': decay}], clip_norm=0.5)
        with self.subTest('muon with outer momentum; the last update is between two meetings'):
            self.check_local(muon, every=3, outer={'momentum': 0.6, 'rate': 0.7})
        with self.subTest("rates that fall between meetings, Nesterov's outer momentum"):
            self.check_local(groups(EMA), inner_power=0.5, outer={'momentum': 0.6, 'rate': 0.7, 'nesterov': True})

    def test_with_estimators(self):
        self.check_local(groups(EMA), estimator=STORM)
        self.check_local(groups(EMA), estimator=IGT)

    def test_one_rank(self):
        self.check_local(groups(EMA), ranks=1, outer={'rate': 0.5})


class OuterTest(CommunicationTest):
    @long
    def test_outer_steps(self):
        momentum = {'rate': 0.8, 'momentum': 0.5, 'nesterov': True}
        for name, outer, more, ranks in (('lookahead', {}, {'estimator': STORM}, 1),
                                         ('with momentum', {'every': 3, **momentum}, {}, 2),
                                         ('rapp', {'type': 'rapp', 'rate': 0.9}, {'estimator': IGT}, 2),
                                         ('rapp with momentum', {'type': 'rapp', 'every': 3, **momentum}, {}, 1)):
            with self.subTest(name):
                self.check({'groups': groups(EMA, ADAM), 'outer': {'type': 'lookahead', 'every': 4, **outer}, **more},
                           ranks)


class PresetTest(CommunicationTest):
    @long
    def test_presets(self):
        """Those of configs/optimizer that name an estimator, a communication or an outer step."""
        presets = {path.stem: json.loads(path.read_text()) for path in (ROOT / 'configs' / 'optimizer').glob('*.json')}
        chosen = [name for name, preset in presets.items() if preset.keys() & {'estimator', 'communication', 'outer'}]
        self.assertTrue(chosen)
        for name in sorted(chosen):
            ranks = 3 if 'communication' in presets[name] else 1
            with self.subTest(name, ranks=ranks):
                self.check({'preset': name, 'weight_decay': 0.1}, ranks)
