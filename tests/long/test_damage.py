"""Every file of a checkpoint, damaged in every way: named, passed over, and the run ends with the same bits."""
import random
import shutil

from faults import FaultTest

FILES = ('model.safetensors', 'optimizer.safetensors', 'config.json', 'state.json', 'manifest.json')
FLIPS = 8  # a file


def flipped(content, generator):
    at, bit = generator.randrange(len(content)), generator.randrange(8)
    damaged = bytearray(content)
    damaged[at] ^= 1 << bit
    return f'bit {bit} of byte {at} flipped', bytes(damaged)


def damages(content, generator):
    """(what, new content or None for a removed file)"""
    for _ in range(FLIPS):
        yield flipped(content, generator)
    # A manifest that lacks its last line end alone is whole.
    lengths = {0, 1, 7, 8, len(content) // 2, len(content) - 4096, len(content) - 2}
    for length in sorted(lengths & set(range(len(content)))):
        yield f'cut to {length} of {len(content)} bytes', content[:length]
    yield 'bytes added', content + b'x'
    yield 'all zeros', bytes(len(content))
    yield 'removed', None


class DamageTest(FaultTest):
    """Checkpoints after 2, 4 and 6 updates; the newest is damaged."""

    def damage(self, folder, name, content):
        path = folder / name
        path.unlink() if content is None else path.write_bytes(content)

    def test_each_file(self):
        generator, cases = random.Random(7), 0
        for name in FILES:
            content = (self.checkpoint(6, 'whole') / name).read_bytes()
            for what, damaged in damages(content, generator):
                with self.subTest(f'{name}: {what}'):
                    shutil.rmtree(self.folder / 'run', ignore_errors=True)
                    shutil.copytree(self.folder / 'whole', self.folder / 'run')
                    self.damage(self.checkpoint(6), name, damaged)
                    result = self.train()
                    self.assertIn('step_00000006', result.err)
                    # A checksum that was damaged looks like damage of its file.
                    self.assertIn(name if name != 'manifest.json' else 'manifest', result.err)
                    self.assertEqual(result.err.count('\n'), 1, result.err)
                    self.assertIn('resumed after 4 updates', result.out)
                    self.assert_same_run('whole', 'run', self.STEPS)
                    self.assertEqual(self.train().err, '')  # the damaged one was replaced
                    cases += 1
        print(f'{cases} damages of {len(FILES)} files', flush=True)
        self.assertGreaterEqual(cases, len(FILES) * (FLIPS + 6))

    def test_all_checkpoints_damaged(self):
        generator = random.Random(8)
        for name in FILES:
            with self.subTest(name):
                shutil.rmtree(self.folder / 'run', ignore_errors=True)
                shutil.copytree(self.folder / 'whole', self.folder / 'run')
                for step in (2, 4, 6):
                    content = (self.checkpoint(step) / name).read_bytes()
                    self.damage(self.checkpoint(step), name, flipped(content, generator)[1])
                before = {path: path.read_bytes() for path in (self.folder / 'run').rglob('*') if path.is_file()}
                result = self.train(status=1)
                self.assertEqual(result.err.count('is passed over'), 3, result.err)
                self.expect_one_error(result, 'no complete checkpoint is left', 'run')
                self.assertEqual(before, {path: path.read_bytes() for path in (self.folder / 'run').rglob('*')
                                          if path.is_file()})
                # By name it is refused just so.
                result = self.train('--resume', 'run/checkpoints/step_00000006', status=2)
                self.assertIn(name, result.err)

    def test_two_of_three(self):
        shutil.copytree(self.folder / 'whole', self.folder / 'run')
        for step, name in ((6, 'state.json'), (4, 'optimizer.safetensors')):
            content = (self.checkpoint(step) / name).read_bytes()
            self.damage(self.checkpoint(step), name, flipped(content, random.Random(step))[1])
        result = self.train()
        for word in ('step_00000006', 'state.json', 'step_00000004', 'optimizer.safetensors'):
            self.assertIn(word, result.err)
        self.assertIn('resumed after 2 updates', result.out)
        self.assert_same_run('whole', 'run', self.STEPS)
