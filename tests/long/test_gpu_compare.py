"""dev/bench/gpu_compare.py: ours on a CPU, in turns with a stand-in that answers as train_torch.py does."""
import json
import subprocess
import sys

from cli import ROOT, TRAIN_GPT, CliTest

STAND_IN = '''#!{python}
import json, sys
print(json.dumps({{"torch": "0.0", "device": "none"}}), flush=True)
for line in sys.stdin:
    question, _, more = line.partition(" ")
    asked = json.loads(more)
    with open("asked", "a") as log:
        log.write(line)
    if question == "model" and asked["micro"] > {fits}:
        answer = {{"error": "OutOfMemoryError: CUDA out of memory"}}
    elif question == "model":
        answer = {{"attention": "FLASH_ATTENTION", "compiled": True}}
    elif question == "variants":
        answer = {{"variants": ["slow", "fast"], "left_out": ["third: not here"]}}
    elif asked["variant"] == "fast" and {dies}:
        sys.exit(3)
    else:
        answer = {{"ms": {{"slow": 2e9, "fast": 1e9}}[asked["variant"]], "peak_memory_bytes": None}}
    print(json.dumps(answer), flush=True)
'''


class GpuCompareTest(CliTest):
    def setUp(self):
        super().setUp()
        self.config({'model': {'seq_len': 16}})
        model = json.loads((self.folder / 'config.json').read_text())['model']
        (self.folder / 'model.json').write_text(json.dumps({'model': model}))

    def compare(self, *arguments, fits=1, dies=False, status=0):
        peer = self.folder / 'peer'
        peer.write_text(STAND_IN.format(python=sys.executable, fits=fits, dies=dies))
        peer.chmod(0o755)
        result = subprocess.run(
            [sys.executable, ROOT / 'dev/bench/gpu_compare.py', '--binary', TRAIN_GPT, '--device', 'cpu', '--python', peer,
             '--steps', '1', '--warmup', '0', '--rounds', '2', '--out', 'out.jsonl', *arguments],
            cwd=self.folder, capture_output=True, text=True, check=False, timeout=120)
        self.assertEqual(result.returncode, status, result.stdout + result.stderr)
        lines = [json.loads(line) for line in (self.folder / 'out.jsonl').read_text().splitlines()]
        return {what: [line for line in lines if line['what'] == f'train.{what}']
                for what in ('peer', 'sample', 'case', 'left_out')}, result.stdout

    def test_windows_take_turns(self):
        lines, out = self.compare('--cases', 'model.json:4x16:muon', 'model.json:4x16:adamw')
        self.assertEqual([sample['variant'] for sample in lines['sample'][:6]], ['ours', 'slow', 'fast', 'slow', 'fast', 'ours'])
        case = lines['case'][0]
        self.assertEqual((case['case'], case['rounds'], case['left_out']), ('model.json:4x16:muon', 2, ['third: not here']))
        self.assertEqual(case['torch_model']['micro_batch'], 1)  # 4 and 2 are out of memory
        ours = [sample['tokens_per_s'] for sample in lines['sample'][:6] if sample['variant'] == 'ours']
        theirs = 1e3 * 4 * 16 / 1e9
        self.assertAlmostEqual(case['torch']['fast']['ratio']['max'] / (max(ours) / theirs), 1)
        self.assertAlmostEqual(case['torch']['slow']['ratio']['min'] / (2 * min(ours) / theirs), 1)
        self.assertEqual(case['torch']['best'], {key: case['torch']['fast'][key] for key in ('tokens_per_s', 'ratio')})
        # PaLM's formula: 6 for each weight in a product, 12 layers T width for attention.
        model = json.loads((self.folder / 'model.json').read_text())['model']
        width, layers = model['d_model'], model['n_layer']
        size = width // model['n_head']
        layer = width * (width + size * 2 * model['n_kv_head']) + width * width + 3 * width * model['d_ff']
        flops = 6 * (layers * layer + model['vocab_size'] * width) + 12 * layers * width * 16
        self.assertAlmostEqual(case['mfu'] * 989.4e12 / case['tokens_per_s']['median'] / flops, 1)
        self.assertAlmostEqual(sum(case['parts_ms'][part] for part in ('gemm', 'attention', 'classifier', 'elementwise', 'optimizer',
                                                                        'data', 'other')) / case['ms'], 1, delta=0.03)
        self.assertGreater(case['planned_bytes'], 0)
        self.assertIsNone(case['launches'])  # a processor has no other kind
        # The model is compiled once for both optimizers.
        asked = [line.split()[0] for line in (self.folder / 'asked').read_text().splitlines()]
        self.assertEqual(asked[:5], ['model', 'model', 'model', 'variants', 'round'])
        self.assertEqual(asked.count('model'), 3)
        self.assertIn('times fast', out)

    def test_what_fails_is_named_and_the_rest_goes_on(self):
        lines, out = self.compare('--cases', 'model.json:4x16:adamw', 'model.json:4x16:lion', dies=True, status=1)
        self.assertEqual([line['case'] for line in lines['left_out']], ['model.json:4x16:adamw', 'model.json:4x16:lion'])
        self.assertEqual(len(lines['peer']), 3)
        self.assertIn('left out: model.json:4x16:adamw: PyTorch ended with status 3', out)
        self.assertEqual(lines['sample'][0]['variant'], 'ours')  # what was measured is kept

    def test_cases_that_do_not_fit_are_named(self):
        lines, _ = self.compare('--cases', 'model.json:4x16:adamw', 'model.json:4x16:lion', '--seconds', '0.01')
        self.assertEqual([case['preset'] for case in lines['case']], ['adamw'])
        self.assertEqual(lines['left_out'][0]['case'], 'model.json:4x16:lion')

    def test_without_pytorch(self):
        for python, why in (('none', None), ('nowhere/python', 'No such file')):
            lines, _ = self.compare('--cases', 'model.json:4x16:adamw', '--python', python)
            self.assertEqual((lines['case'][0]['torch'], lines['case'][0]['torch_model']), ({}, None))
            self.assertEqual([why in line['why'] for line in lines['left_out']], [True] if why else [])

    def test_wrong_use(self):
        for case, text in (('124m', 'expected MODEL:SEQUENCESxLENGTH:PRESET'), ('17b:1x2:adamw', 'no model 17b')):
            result = subprocess.run([sys.executable, ROOT / 'dev/bench/gpu_compare.py', '--cases', case],
                                    capture_output=True, text=True, check=False)
            self.assertEqual(result.returncode, 1)
            self.assertIn(text, result.stderr)
