"""Would the tests notice if a kernel were wrong? Bugs are put into the real kernels, one at a time, and the tests under
the emulator's race build have to fail.

All mutants of all kernels are compiled into one program: where the source says `old`, the mutated copy says `old` or
`new`, by the number in the environment (LMO_MUTANT). Every barrier, every wait of Hopper's kind and every wait for the
kernels ahead is left out in turn and every wait for cp.async waits for one group less, without being listed; the rest
is in MUTANTS. With number 0 the tests have to pass.
LMO_SHOW_MUTANTS=1 prints what was found for each; LMO_MUTATE=PATTERN takes only files whose name the pattern matches.
"""
import concurrent.futures
import functools
import os
import pathlib
import re
import shlex
import subprocess
import tempfile
import unittest

ROOT = pathlib.Path(__file__).resolve().parent.parent.parent
BUILD = pathlib.Path(os.environ.get('LMO_BUILD', ROOT / 'build'))
KERNELS = ROOT / 'llmc' / 'cuda'
CORES = os.cpu_count() or 2
SECONDS = 240  # of one run; a mutant that hangs counts as noticed

# The tests of each file, as patterns of GoogleTest. Those of headers are tests of kernels that include them.
TESTS = {
    'attention.cu': '*/AttentionTest.*:*/QkClipTest.RowMaxima*',
    'attention.cuh': '*/AttentionTest.*',
    'attention_backward.cu': '*/AttentionTest.*',
    'attention_general.cu': '*/AttentionTest.*:*/QkClipTest.RowMaxima*',
    'attention_general.cuh': '*/AttentionTest.*',
    'attention_general_backward.cu': '*/AttentionTest.*',
    'attention_one.cu': '*/AttentionOneTest.*',
    'cast.cu': '*/ReductionsTest.Copy*',
    'classifier.cu': '*/ClassifierTest.*',
    'common.cuh': '*/ReductionsTest.*:*/ClassifierTest.*:*/SwigluTest.*',
    'embedding.cu': '*/EmbeddingBackwardTest.*:*/ModelOpsTest.Embedding*',
    'fused_update.cu': '*/FusedUpdateTest.*',
    'gemm.cu': '*/GemmTest.*',
    'lines.cu': '*/LinesTest.*',
    'newton_schulz_batch.cu': '*/NewtonSchulzTest.*:*/SpectralUpdateTest.*',
    'newton_schulz_lists.cuh': '*/NewtonSchulzTest.*:*/SpectralUpdateTest.*:*/SplitWeightsTest.Spectral*',
    'optimizer.cu': '*/OptimizerOpsTest.*:*/OptimizerListTest.*:*/StepsTest.*:*/SplitWeightsTest.Joined*',
    'parts.cuh': '*/ReductionsTest.*:*/StepsTest.Dot*',
    'qk_clip.cu': '*/QkClipTest.HeadMaxima*:*/ClipTest.*',
    'reductions.cu': '*/ReductionsTest.*:*/StepsTest.Dot*',
    'rmsnorm.cu': '*/RmsNormTest.*',
    'rope.cu': '*/RopeTest.*',
    'schatten.cu': '*/SchattenTest.*',
    'singular_range.cu': '*/SingularRangeTest.*',
    'step_sizes.cu': '*/StepsTest.StepSizes*',
    'sums.cuh': '*/ReductionsTest.*:*/StepsTest.Dot*:*/LinesTest.*',
    'swiglu.cu': '*/SwigluTest.*',
    'symmetric.cu': 'SymmetricTest.*/mma_*',
    'symmetric.cuh': 'SymmetricTest.*',
    'symmetric_hopper.cu': 'SymmetricTest.*/narrow_*',
    'symmetric_hopper.cuh': 'SymmetricTest.*/narrow_*',
    'symmetric_mma.cuh': 'SymmetricTest.*/mma_*',
    'symmetric_narrow.cuh': 'SymmetricTest.*/narrow_*',
    'symmetric_wide.cuh': 'SymmetricTest.*/wide_*',
    'symmetric_wide_hopper.cu': 'SymmetricTest.*/wide_*',
    'tensor_table.cuh': '*/OptimizerOpsTest.*:*/OptimizerListTest.*',
    'tile.cuh': '*/AttentionTest.*',
    'update_elements.cuh': '*/OptimizerOpsTest.*:*/StepsTest.*',
    'weight_lists.cuh': '*/OptimizerOpsTest.*:*/SplitWeightsTest.Apply*:*/SplitWeightsTest.Joined*',
}

# (file, what is wrong, where): the text between the first and the second @ becomes that between the second and the
# third, the rest says where; it occurs once in the file, white space aside. A text that ends in ; or } is a statement,
# any other one an expression.
MUTANTS = [
    ('attention.cu', 'diagonal tiles are not masked', 'if (@j * kKeys + kKeys - 1@j * kKeys@ > first_row) mask_future'),
    ('attention.cu', 'keys and values always in the first stage', 'bf16* const stage = stages + (@j & 1@0@)'),
    ('attention.cu', 'lse of rows past the end', 'if (@row + 8@row@ < T) lse'),
    ('attention.cu', 'old sum not rescaled', 'fmaf(sum[half], @rescale@1.0f@, more)'),
    ('attention.cu', 'old output not rescaled', 'acc[n][2 * half + 1] *= @rescale@1.0f@;'),
    ('attention.cu', 'copies committed too early',
     '@if (j + 1 < tiles) load_keys(j + 1); cp_async_commit();@cp_async_commit(); if (j + 1 < tiles)'
     ' load_keys(j + 1);@ if (j == 0)'),
    ('attention.cu', 'queries past the end are loaded', 'heads.stride(), @T - q0@kQueries@, heads.size); load_keys(0)'),
    ('attention.cuh', 'causal mask off by one', 'if (key + 8 * n + e % 2 > row + @e / 2 * 8@e / 2 * 8 + 1@)'),
    ('attention.cuh', 'mask of the backward pass off by one',
     'if (query + 8 * n + e % 2 < row + @e / 2 * 8@e / 2 * 8 - 1@)'),
    ('attention.cuh', 'maximum of half a quad', 'fmaxf(x, __shfl_xor_sync(0xffffffffu, x, @2@1@))'),
    ('attention.cuh', 'sum of half a quad', 'x + __shfl_xor_sync(0xffffffffu, x, @2@1@)'),
    ('attention.cuh', 'rows stored past the end', 'if (@row < rows@true@ && 8 * chunk < columns)'),
    ('attention.cuh', 'values of the first keys only',
     'x[2 * k + 1]); #pragma unroll for (int n = 0; n < Size / 16; ++n) { uint32_t b[4];'
     ' load_b_columns<Size>(b, tile, @k * 16@k * 16 % 16@, 2 * n)'),
    ('attention_backward.cu', 'half of the sum for delta', 'for (int step = @kChunks / 2@kChunks / 4@; step > 0'),
    ('attention_backward.cu', 'query 0 keeps a gradient',
     'dq, @row == 0 ? 0.0f : heads.scale@heads.scale@, heads.scale'),
    ('attention_backward.cu', 'queries always in one stage', '@stage ^= 1;@@'),
    ('attention_backward.cu', 'lse of another query', 'fmaf(s[n][e], scale2, -pairs[@e % 2 * 2@0@])'),
    ('attention_backward.cu', 'delta of another query', 'ds[n][e] - pairs[@e % 2 * 2 + 1@1@]'),
    ('attention_backward.cu', 'keys of the diagonal are not masked',
     'if (@now < first_key + 15@now < first_key@) mask_past'),
    ('attention_backward.cu', 'first queries of the next head left out', '@q0 = k0;@q0 = k0 + Queries;@ ++head;'),
    ('attention_backward.cu', 'delta not corrected', '@rows[16 * half + 1] + e@rows[16 * half + 1]@'),
    ('attention_general.cu', 'causal mask off by one',
     'bool visible = @k0 + x + 16 * j <= row + i@k0 + x + 16 * j < row + i@'),
    ('attention_general.cu', 'old output not rescaled', 'acc[i][c] *= @rescale@1.0f@;'),
    ('attention_general.cu', 'lse of rows past the end', 'item.column == 0 && @row + i < positions@true@) { const int64_t at'),
    ('attention_general.cuh', 'rows past the end are loaded', 'at[@min(row, from.rows - 1)@row@ * from.stride]'),
    ('attention_general.cuh', 'columns past the end count', '@row < rows ? value : 0.0f@value@'),
    ('attention_general.cuh', 'rows past the end are stored',
     'if (@row0 + i >= to.rows@false@ || column >= to.columns) continue;'),
    ('attention_general.cuh', 'columns past the end are stored',
     'if (@column + c < to.columns@true@) at[c] = values[c];'),
    ('attention_general.cuh', 'sum of half a row', 'for (int step = @8@4@; step > 0; step /= 2) value +='),
    ('attention_general_backward.cu', 'causal mask off by one',
     'inside && @key + 16 * j <= row + i@key + 16 * j < row + i@'),
    ('attention_general_backward.cu', 'rows of the workspace past the end',
     'if (x == 0 && @row + i < positions@true@) store(p.rows'),
    ('attention_general_backward.cu', 'delta of some keys only', '@row_sum(delta[i])@delta[i]@ * inverse'),
    ('attention_one.cu', 'keys of the first head of all', 'heads.key(0, t, @head / heads.group()@0@)'),
    ('attention_one.cu', 'weights not from the largest score', 'expf(scores[t] - @top@1.0f@)'),
    ('attention_one.cu', 'columns past the end', 'if (warp == 0 && @d < heads.size@true@)'),
    ('attention_one.cu', 'sum of half the warps', 'for (int w = 1; w < @kWarps@kWarps / 2@; ++w) sum +='),
    ('cast.cu', 'values one percent off', 'to = from_float<To>(@single@1.01f * single@)'),
    ('classifier.cu', 'running sum not rescaled', 'softmax.total * @exponential<T>(softmax.top - top)@1.0f@'),
    ('classifier.cu', 'vectors past the row are loaded', 'if (@v < cut.vectors@true@) batch[i] = load_streaming'),
    ('classifier.cu', 'one element past the row', '@tail + thread < columns@tail + thread <= columns@'),
    ('classifier.cu', 'another thread writes the target', '@vector % Threads == threadIdx.x@threadIdx.x == 5@'),
    ('classifier.cu', 'scratch used twice without a barrier', 'exponential<T>(own.top - top), @totals@tops@)'),
    ('classifier.cu', 'ignored rows keep their logits', '@clear_row<T, Threads>(row, cut);@@'),
    ('common.cuh', 'half of the warps summed', 'warp < @Threads / 32@Threads / 64@; ++warp) sum +='),
    ('common.cuh', 'half of the warps looked at', 'warp < @Threads / 32@Threads / 64@; ++warp) top ='),
    ('common.cuh', 'block columns overlap',
     'int64_t{blockIdx.x % across} * @blockDim.x@(blockDim.x - (blockDim.x > 1))@'),
    ('embedding.cu', 'counters not zeroed', '@sums[threadIdx.x] = 0;@@'),
    ('embedding.cu', 'counted without atomics',
     '@atomicAdd(&sums[digit_of(entries[i], shift)], 1);@++sums[digit_of(entries[i], shift)];@'),
    ('embedding.cu', 'counts of the warps not zeroed', '@places[w][threadIdx.x] = 0;@@'),
    ('embedding.cu', 'entries past the end are read', 'return @i < count@true@ && entries[i] >> 32'),
    ('embedding.cu', 'both tiles of a long run in one place', '@turn = 1 - turn;@@'),
    ('embedding.cu', 'prefix sum one step short', 'for (int step = 1; step < @32@16@; step *= 2)'),
    ('embedding.cu', 'rows of equal ids out of order',
     'rank[round] = earlier + __popc(peers & @((1u << lane) - 1)@~((2u << lane) - 1)@)'),
    ('embedding.cu', 'columns past the end', 'bool inside() const { return @column < columns@true@; }'),
    ('gemm.cu', 'diagonal read that nobody has written', 'if (i < m && @j < i@j <= i@) c[j * m + i]'),
    ('gemm.cu', 'rows past the end are read', 'if (@i < m@true@ && j < i) tile[y][x]'),
    ('newton_schulz_batch.cu', 'rows past the end', '@if (i >= shape.shorter) return;@@'),
    ('newton_schulz_lists.cuh', 'padding not zeroed', 'values[k] = @k < count@true@ ? from[k] : T{};'),
    ('newton_schulz_lists.cuh', 'padding written back', 'if (@k < count@true@) to[k] = converted<T>'),
    ('newton_schulz_lists.cuh', 'momentum not kept', '@store_some(momentum.data[blockIdx.y] + at, count, m);@@'),
    ('newton_schulz_lists.cuh', 'the first matrix for all',
     'store_some(weights.data[@blockIdx.y@0@] + at, count, w); store_some(copies'),
    ('newton_schulz_lists.cuh', 'copies of the first matrix', 'store_some(copies.data[@blockIdx.y@0@] + at, count, w);'),
    ('newton_schulz_lists.cuh', 'remainders of the first matrix',
     'load_some(low.data[@blockIdx.y@0@] + at, count, lower);'),
    ('newton_schulz_lists.cuh', 'remainders not kept', '@store_some(low.data[blockIdx.y] + at, count, lower);@@'),
    ('newton_schulz_lists.cuh', 'decay of the first matrix', 'lr * decay[@blockIdx.y@0@]'),
    ('newton_schulz_batch.cu', 'diagonal beside', 'j + k == @i@i + 1@ ? diagonal'),
    ('optimizer.cu', 'joined without the remainder', 'w = join(high, @low@0@);'),
    ('optimizer.cu', 'decay without the rate', 'return {static_cast<float>(@lr * s.decay@s.decay@)'),
    ('update_elements.cuh', 'second moment from the new gradient alone', 'v = fmaf(c.beta2, @v@0.0f@, c.rest2'),
    ('attention.cu', 'largest score without its scale', 'row_max[row + 8] = top[1] * @heads.scale@1.0f@;'),
    ('attention_general.cu', 'largest score of another row', 'p.row_max[at] = top[@i@0@];'),
    ('lines.cu', 'rows past the end', 'if (@at.outside()@false@) return; const double squares = warp_squares(at.data(),'
     ' at.columns()); const float divisor'),
    ('lines.cu', 'columns past the end', 'const bool inside = @column < columns@true@;'),
    ('lines.cu', 'norm of the first rows alone', 'for (int i = 0; i < @kThreadsDown@kThreadsDown / 2@; ++i) squares'),
    ('lines.cu', 'old second moment left out', 'fma(beta2, @to_double(second)@0.0@, (1.0 - beta2) * mean)'),
    ('lines.cu', 'norm not restored', 'static_cast<float>(@*at.entry.scalars.restored@1.0@ / divisor_of'),
    ('fused_update.cu', 'step without the rate', '@lr * s.radius@s.radius@)}, 0.0f, cautious}'),
    ('fused_update.cu', 'signs left out', 'if (@c.signs@false@) SignUpdate'),
    ('fused_update.cu', 'norm of the first tensor', 'squares ? squares + @i@0@ : nullptr'),
    ('fused_update.cu', 'norm of the gradient, not scaled', '@StatelessUpdate::update(c, x);@@ return plus_square'),
    ('fused_update.cu', 'norm of the gradient, not the momentum',
     '@StartedMomentumUpdate::update(c, x, old);@@ return plus_square'),
    ('fused_update.cu', 'sums of a second launch in the place of the first ones',
     'stateless_update(op), table, parts); add_parts(table, parts, @sums + first@sums@, stream);'),
    ('fused_update.cu', 'sums of a second launch with momentum in the place of the first ones',
     'started_update(op), table, parts); add_parts(table, parts, @sums + first@sums@, stream);'),
    ('update_elements.cuh', 'every momentum starts anew',
     'return {terms.coefficients(none), step && @*step == 0@true@};'),
    ('update_elements.cuh', 'cautious against the direction', 'c.cautious && !(@x * w > 0.0f@x * w < 0.0f@)'),
    ('optimizer.cu', 'pull of another step', '@1.0 / (*step + 2.0)@1.0 / (*step + 1.0)@ : 0.0'),
    ('optimizer.cu', 'size of the first tensor', 'op.size.as<double>() + @i@0@;'),
    ('qk_clip.cu', 'a sequence left out', 'for (int64_t b = @0@1@; b < sequences'),
    ('qk_clip.cu', 'least gain of another group', 'for (int h = @head.key * group@0@; h <'),
    ('qk_clip.cu', 'queries take all of the clip', 'gain(head.query) / @of_key@1.0@)'),
    ('parts.cuh', 'a chunk past the end', '{index, begin, @rest < kPartChunk@false@ ? rest : kPartChunk}'),
    ('sums.cuh', 'one element past the end',
     'if (@thread < count - whole@thread <= count - whole@) sums[0] = add'),
    ('reductions.cu', 'parts of the next tensor too', '@table.first_block[index + 1]@table.blocks@ : table.blocks'),
    ('schatten.cu', 'one sweep', 'changed && sweep < @kSweeps@1@; ++sweep'),
    ('schatten.cu', 'the row without a partner', 'if (@pair.q < w.rows@pair.q <= w.rows@) changed'),
    ('schatten.cu', 'rotations of the other sense', 'fmaf(by.sine, fmaf(@-by.tangent@by.tangent@, b[k], old), b[k])'),
    ('schatten.cu', 'small values count', 'const bool counts = p > 1 ? @s[i] > share * top@s[i] > 0@'),
    ('schatten.cu', 'not scaled', 'ldexpf(tensor[w.in_tensor(i, j)], @-exponent@0@)'),
    ('schatten.cu', 'rows past the last', 'if (@i < rows@true@ && j < stride)'),
    ('singular_range.cu', 'start not normalised', 'v_[i] = norm > 0 ? @v_[i] / norm@v_[i]@ : 0.0 * norm;'),
    ('singular_range.cu', 'columns past the end', 'if (@j < at_.columns@true@) { #pragma unroll 4'),
    ('step_sizes.cu', 'the sum not for all', 'for (int64_t i = threadIdx.x; i < count; i += kThreads) out[@i@0@] = total;'),
    ('step_sizes.cu', 'the error of one side', 'fmin(1.0, fmax(@above@0.0@, below))'),
    ('rmsnorm.cu', 'rows past the end', '@if (row >= a.rows) return;@@'),
    ('rmsnorm.cu', 'vectors past the row are loaded', 'if (@v < vectors@true@) sum[k] = load<W>'),
    ('rmsnorm.cu', 'scratch reused without a barrier', 'block_sum<Threads>(along, scratch[@row % 2@0@])'),
    ('rmsnorm.cu', 'scratch reused without a barrier, plain kernel',
     'block_sum<kPlainThreads>(along, scratch[@row % 2@0@])'),
    ('rmsnorm.cu', 'parts not set by the first row', 'part[i] = @row == begin@false@ ? product'),
    ('rmsnorm.cu', 'parts past the end', 'end = @begin + length < count@true@ ? begin + length : count; wait_for_previous(); float sum'),
    ('rmsnorm.cu', 'mean square a little too large',
     'squares += @to_float(sum[k][i]) * to_float(sum[k][i])@1.001f * to_float(sum[k][i]) * to_float(sum[k][i])@'),
    ('rope.cu', 'positions not counted anew in each sequence', 'int64_t{@row % positions@row@}'),
    ('rope.cu', 'rows past the end', 'if (@at.row >= rows@false@ || at.column'),
    ('rope.cu', 'the inverse turns forwards', 'sine = @direction@1.0f@ * turns'),
    ('swiglu.cu', 'columns past the end', 'if (at.row >= rows || @at.column >= width@false@) return; const T* from'),
    ('swiglu.cu', 'wrong half of the gradient', 'store(dgate_up + place + @width * W@0@, dup)'),
    ('symmetric_mma.cuh', 'A always in the first stage', 'T* const stage = stages_ + @step % Stages@0@ * Shape::kStage;'),
    ('symmetric_mma.cuh', 'columns past the end', 'const int columns = @p_.k - step * kDepth@kDepth@, part'),
    ('symmetric_mma.cuh', 'rows of C past the end', 'p_.n, @rows - part * kPart@kPart@, b_rows);'),
    ('symmetric_mma.cuh', 'B of another tile', 'b_ = p.b + (matrix * p.n + @at.column@at.row@ * Side)'),
    ('symmetric_mma.cuh', 'C of another matrix', 'const int64_t row = @matrix_@0@ * p_.n + at_.row'),
    ('symmetric_mma.cuh', 'products of half the columns',
     'for (int chunk = 0; chunk < @kDepth / 8@kDepth / 16@; chunk += 2)'),
    ('symmetric_mma.cuh', 'no beta', 'x[1] = fmaf(@p.beta@1.0f@, to_float(c[1])'),
    ('symmetric_mma.cuh', 'diagonal beside the diagonal', 'row == @column + 1@column@) x[1] += p.diagonal'),
    ('symmetric_mma.cuh', 'diagonal in every tile', 'if (@on_diagonal@true@ && row == column) x[0]'),
    ('symmetric_mma.cuh', 'mirror image of other rows', 'warp.row + i + 8 * (@e % 2@e / 2@) + lane % 4 * 2'),
    ('symmetric_mma.cuh', 'the upper triangle wins', 'piece[e] = @column + e <= row@column + e >= row@ ? piece[e]'),
    ('symmetric_mma.cuh', 'columns stored past the end',
     'if (first_row + row < n && @first_column + column < n@true@) {'),
    ('symmetric_mma.cuh', 'mirror image stored past the end',
     'else if (@first_row + column < n@true@) {'),
    ('symmetric_mma.cuh', 'waits for one step less', '@cp_async_wait<Stages - 2>();@cp_async_wait<Stages - 1>();@'),
    ('symmetric_mma.cuh', 'mirror image in the place of the tile', 'mirror{stages, @steps + Shape::kParts@steps@};'),
    ('symmetric.cuh', 'tiles of the row above',
     'return {row, @index - row * (row + 1) / 2@index - row * (row - 1) / 2@};'),
    ('symmetric_hopper.cuh', 'rows of B from A', 'step * kDepth, @column@row@, matrix, arrived);'),
    ('symmetric_narrow.cuh', 'C for the other warpgroup',
     'const int consumer = @turn % kConsumers@(turn + 1) % kConsumers@; uint64_t'),
    ('symmetric_narrow.cuh', 'sums of the tile before', 'const bool add = @step > 0 || k > 0@true@;'),
    ('symmetric_narrow.cuh', 'upper half of A twice', 'a + @kNextHalf@0@ + k * kNextK'),
    ('symmetric_narrow.cuh', 'stages are never free again',
     '@if (first_thread) barrier_arrive(&shared.stages.empty[last]);@@'),
    ('symmetric_narrow.cuh', 'the other warpgroup may not begin',
     '@if (first_thread) barrier_arrive(&shared.begins[(consumer + 1) % kConsumers]);@@'),
    ('symmetric_narrow.cuh', 'sums used too early', '@wgmma_wait<0>(sums[0]); wgmma_wait<0>(sums[1]);@@'),
    ('symmetric_narrow.cuh', 'mirror image in the place of the tile',
     '@store(at.column, at.row);@store(at.row, at.column);@ }'),
    ('symmetric_narrow.cuh', 'the result tile is never free again',
     '@if (threadIdx.x % kGroup == 0) barrier_arrive(&shared.free[consumer]);@@'),
    ('symmetric_narrow.cuh', 'stages of the other warpgroup', 'ring.advance(@consumer * p.steps@p.steps@);'),
    ('symmetric.cu', 'the other type', '@op.type@DType::bf16@ == DType::f16 ? run(Type<fp16>())'),
    ('symmetric_hopper.cu', 'the other type', '@op.type@DType::bf16@ == DType::f16 ?'),
    ('symmetric_wide_hopper.cu', 'the other type', '@op.type@DType::bf16@ == DType::f16 ?'),
    ('symmetric_hopper.cuh', 'parity of another stage', 'parity ^= @next / Stages & 1@next / (Stages + 1) & 1@;'),
    ('symmetric_hopper.cuh', 'no beta', 'float x1 = fmaf(@p.beta@1.0f@, to_float(old[1])'),
    ('symmetric_hopper.cuh', 'diagonal of the wrong rows', 'diagonal && right == 0, diagonal && right == @-1@1@'),
    ('symmetric_hopper.cuh', 'diagonal in every block',
     'const bool diagonal = @on_diagonal && block == strip.number@on_diagonal@;'),
    ('symmetric_hopper.cuh', 'the upper triangle wins', 'keep = @right > 0@right < 0@ ? 0'),
    ('symmetric_hopper.cuh', 'elements of the diagonal mirrored in pairs', 'right == 0 ? @0xffffu@0xffffffffu@'),
    ('symmetric_hopper.cuh', 'diagonal blocks not mirrored',
     'if (@block < strip.number@block <= strip.number@) continue;'),
    ('symmetric_hopper.cuh', 'mirror image of other blocks',
     'kTileBytes + @block * 16 * 128@(block ^ 1) * 16 * 128@);'),
    ('symmetric_hopper.cuh', 'both halves of C alike', 'c_map, column + @side * kDepth@0@, row'),
    ('symmetric_hopper.cuh', 'both halves stored from one', 'matrix, result + @side * kTileBytes@0@); }'),
    ('symmetric_wide.cuh', 'one row of a pair twice', '(2 * at.row + @index % 2@0@) * kSide'),
    ('symmetric_wide.cuh', 'the last row counts as a pair',
     'const int pairs = @p.rows / 2@(p.rows + 1) / 2@, in_pairs'),
    ('symmetric_wide.cuh', 'C above the diagonal expected', '@parts * kResultBytes@2 * kResultBytes@);'),
    ('symmetric_wide.cuh', 'both warpgroups with the same rows', 'own = a + @consumer * kNextHalf@kNextHalf@'),
    ('symmetric_wide.cuh', 'sums used too early', '@wgmma_wait<0>(sums);@@'),
    ('symmetric_wide.cuh', 'sums of the tile before', 'b + k * kNextK, @step > 0 || k > 0@true@);'),
    ('symmetric_wide.cuh', 'right result of the left sums', '(sums[@part * kSide / 2@0@])'),
    ('symmetric_wide.cuh', 'results above the diagonal are stored', 'if (@right > 0@false@ || (mirrored'),
    ('symmetric_wide.cuh', 'the diagonal not mirrored', 'if (@at.right(part) == 0@false@) read_mirrored'),
    ('symmetric_wide.cuh', 'an empty stage for one warpgroup', 'of_empty ? @kConsumers@1@ : 1'),
    ('symmetric_wide.cuh', 'results are never free again',
     '@if (threadIdx.x == kGroup) barrier_arrive(shared.free);@@'),
    ('tensor_table.cuh', 'last block past the end', '@rest < kUpdateChunk@false@ ? rest'),
    ('tensor_table.cuh', 'misaligned vectors', '@Lists::template Values<N>::aligned(data)@true@ ? count / N * N'),
    ('tensor_table.cuh', 'elements updated twice', 'update_range<1, Op>(coefficients, data, @together@0@, count)'),
    ('tensor_table.cuh', 'wrong tensor', '@first_block[middle] <= block@first_block[middle] < block@ ? low'),
    ('weight_lists.cuh', 'remainder without its sign', '(@static_cast<int32_t>(low)@static_cast<uint16_t>(low)@)'),
    ('weight_lists.cuh', 'rounded towards zero', '((@bits + 0x8000u@bits@) >> 16)'),
    ('weight_lists.cuh', 'no remainder', 'low = static_cast<int16_t>(@bits & 0xffffu@0u@);'),
    ('weight_lists.cuh', 'NaN becomes a number', '@size > kLargestNaN@false@ ? kLargestNaN'),
    ('weight_lists.cuh', 'sign lost', '(@given & 0x80000000u@0u@) |'),
    ('weight_lists.cuh', 'copies of other weights', 'copy = from_float<Copy>(@w@-w@);'),
    ('tile.cuh', 'rows past the end are read', '@row < rows@true@ ? bytes : 0'),
    ('tile.cuh', 'chunks permuted differently', '(lane & 7) + (lane >> 4) * 8, @lane >> 3 & 1@lane >> 4@)'),
]

SYNCHRONISATION = re.compile(r'^ *(__sync(?:threads|warp)\(\);|cp_async_wait<(\d+)>\(\);|barrier_wait\([^;]*\);'
                             r'|wait_for_previous\(\);|meet\(\);|named_barrier_sync\([^;]*\);|wgmma_wait<\d+>\(\);'
                             r'|tma_store_wait_read<\d+>\(\);)',
                             re.MULTILINE)


def pattern_of(text):
    """The text as a regular expression that takes any white space for white space."""
    return r'\s+'.join(re.escape(word) for word in text.split())


class Mutant:
    def __init__(self, file, what, span, new):
        self.file, self.what, self.span, self.new = file, what, span, new
        self.number = 0


def listed_mutant(file, what, where, source):
    """Finds the text of an entry of MUTANTS."""
    before, old, new, after = where.split('@')
    parts = [pattern_of(before), f'(?P<old>{pattern_of(old)})', pattern_of(after)]
    matches = list(re.finditer(r'\s*'.join(part for part in parts if part), source))
    if len(matches) != 1:
        raise ValueError(f'{file}: {what}: the text is there {len(matches)} times, not once: {before}{old}{after}')
    return Mutant(file, what, matches[0].span('old'), new)


def mutants_of(file, source, stale):
    """All mutants of a file, in order of their places; entries whose text is not in it go to `stale`."""
    found = []
    for entry in MUTANTS:
        if entry[0] == file:
            try:
                found.append(listed_mutant(*entry, source))
            except ValueError as error:
                stale.append(str(error))
    for match in SYNCHRONISATION.finditer(source):
        line = source.count('\n', 0, match.start()) + 1
        new = f'cp_async_wait<{int(match.group(2)) + 1}>();' if match.group(2) else ''
        call = ' '.join(match.group(1)[:-1].split())
        what = f'line {line}, {call} waits for one group less' if new else f'line {line}, without {call}'
        found.append(Mutant(file, what, match.span(1), new))
    return sorted(found, key=lambda mutant: mutant.span)


def with_mutants(source, mutants):
    """The source in which LMO_MUTANT chooses; several mutants may have the same place, but not overlap else."""
    places = {}
    for mutant in mutants:
        places.setdefault(mutant.span, []).append(mutant)
    text, end = [], 0
    for (first, last), here in sorted(places.items()):
        if first < end:
            raise ValueError(f'{here[0].file}: {here[0].what}: overlaps with another mutant')
        old = source[first:last]
        text += [source[end:first], statement(old, here) if old[-1] in ';}' else expression(old, here)]
        end = last
    return ''.join(text) + source[end:]


def statement(old, mutants):
    return ''.join(f'if (lmo_mutant == {m.number}) {{ {m.new} }} else ' for m in mutants) + f'{{ {old} }}'


def expression(old, mutants):
    return '(' + ''.join(f'lmo_mutant == {m.number} ? ({m.new}) : ' for m in mutants) + f'({old}))'


SWITCH = '''#pragma once
#include <cstdlib>
inline const int lmo_mutant = getenv("LMO_MUTANT") ? atoi(getenv("LMO_MUTANT")) : 0;
'''


class Program:
    """cuda_tests of the race build with all mutants in it."""

    def __init__(self, folder):
        self.folder = pathlib.Path(folder)
        self.binary = self.folder / 'cuda_tests'
        self.mutants, self.stale = [], []
        copies = self.folder / 'llmc' / 'cuda'
        copies.mkdir(parents=True)
        for path in sorted([*KERNELS.glob('*.cu'), *KERNELS.glob('*.cuh')]):
            source = path.read_text()
            mutants = mutants_of(path.name, source, self.stale)
            for mutant in mutants:
                self.mutants.append(mutant)
                mutant.number = len(self.mutants)
            text = with_mutants(source, mutants)
            if path.name == 'common.cuh':
                text = text.replace('#pragma once\n', SWITCH, 1)
            (copies / path.name).write_text(text)
        self.build(copies)

    def build(self, copies):
        """The Makefile's own commands, with the copies in place of the sources."""
        target = f'{BUILD}/emulated/race/cuda_tests'
        dry_run = run(['make', '--no-print-directory', '-n', '-B', f'BUILD={BUILD}', target]).stdout
        compilers = ('g++', 'c++', 'clang++', os.environ.get('CXX', 'g++'))
        lines = dry_run.replace('\\\n', ' ').split('\n')
        commands = [shlex.split(line) for line in lines if line.startswith(compilers)]
        link = next(command for command in commands if command[-1] == target)
        compilations = []
        for command in commands:
            if '-c' not in command or not (source := command[command.index('-c') + 1]).endswith('.cu'):
                continue
            made = command[command.index('-o') + 1]
            mine = self.folder / (pathlib.Path(source).stem + '.o')
            link[link.index(made)] = str(mine)
            omitted = ('-MMD', '-MP', '-g', '-Wall', '-Wextra', '-c', source, '-o', made)
            # The compiled header has the sources, not the copies.
            options = [word for before, word in zip(['', *command], command)
                       if word not in (*omitted, '-include') and before != '-include']
            compilations.append(options[:1] + ['-w', '-g1', '-I', str(self.folder)] + options[1:]
                                + ['-c', str(copies / pathlib.Path(source).name), '-o', str(mine)])
        link[link.index(target)] = str(self.binary)
        with concurrent.futures.ThreadPoolExecutor(CORES) as pool:
            list(pool.map(run, compilations))
        run(link)

    def finding(self, number, tests):
        """What the tests say with this mutant; empty if they pass."""
        command = [str(self.binary), '--gtest_brief=1', '--gtest_fail_fast', f'--gtest_filter={tests}']
        environment = {**os.environ, 'LMO_MUTANT': str(number), 'LMO_EMULATOR_LOG': ''}
        try:
            result = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True,
                                    errors='replace', timeout=SECONDS)
        except subprocess.TimeoutExpired:
            return f'no end after {SECONDS} s'
        if result.returncode == 0:
            return ''
        lines = (result.stdout + result.stderr).split('\n')
        telling = [line for line in lines if 'emulator: ' in line] or [line for line in lines if 'Failure' in line]
        return telling[0].strip() if telling else f'status {result.returncode}: {result.stderr.strip()[-300:]}'


def run(command):
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    if result.returncode != 0:
        raise RuntimeError(f'{shlex.join(command)}\n{result.stdout}{result.stderr}'[-4000:])
    return result


@functools.cache
def program():
    """Built when the first test asks for it, removed when the process ends."""
    program.folder = tempfile.TemporaryDirectory()
    return Program(program.folder.name)


@unittest.skipUnless((BUILD / 'emulated' / 'race' / 'cuda_tests').exists(), 'the emulator\'s race build was not made')
class MutationTest(unittest.TestCase):
    def test_without_mutant(self):
        # Else every mutant would count as noticed.
        tests, mutated = sorted(set(TESTS.values())), program()
        with concurrent.futures.ThreadPoolExecutor(CORES) as pool:
            for pattern, found in zip(tests, pool.map(lambda pattern: mutated.finding(0, pattern), tests)):
                with self.subTest(pattern):
                    self.assertEqual(found, '')

    def test_all_mutants_are_noticed(self):
        mutated = program()
        mutants = [m for m in mutated.mutants if re.search(os.environ.get('LMO_MUTATE', ''), m.file)]
        with concurrent.futures.ThreadPoolExecutor(CORES) as pool:
            findings = list(pool.map(lambda m: mutated.finding(m.number, TESTS[m.file]), mutants))
        for mutant, found in zip(mutants, findings):
            if os.environ.get('LMO_SHOW_MUTANTS'):
                print(f'{mutant.file}: {mutant.what}: {found or "SURVIVED"}', flush=True)
            with self.subTest(file=mutant.file, what=mutant.what):
                self.assertTrue(found, 'survived: no test noticed it')

    def test_the_list_is_true(self):
        files = {path.name for path in [*KERNELS.glob('*.cu'), *KERNELS.glob('*.cuh')]}
        self.assertEqual({entry[0] for entry in MUTANTS} | {mutant.file for mutant in program().mutants}, set(TESTS))
        self.assertLessEqual(set(TESTS), files)
        self.assertEqual(program().stale, [])

    def test_all_files_have_mutants(self):
        files = {path.name for path in KERNELS.glob('*.cu')}
        self.assertEqual(files - {mutant.file for mutant in program().mutants}, set())
