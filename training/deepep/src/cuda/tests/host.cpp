} // namespace kernels

// Reads a file of words (which kernel, blocks, ranks, bytes of a heap, a rank that doesn't run or -1, words of the call
// and the call; tokens of each rank; the heaps), runs the kernel, and writes the heaps.
int main(int count, char **names) {
    using kernels::u64;
    if (count != 3) return 2;
    std::FILE *in = std::fopen(names[1], "rb");
    u64 head[6];
    if (!in || std::fread(head, 8, 6, in) != 6) return 3;
    const u64 ranks = head[2], bytes = head[3], words = head[5];
    std::vector<u64> call(words + 2 * ranks);
    if (std::fread(call.data(), 8, words, in) != words) return 3;
    if (std::fread(call.data() + words + ranks, 8, ranks, in) != ranks) return 3;
    std::vector<std::vector<kernels::Vector>> heaps(ranks, std::vector<kernels::Vector>(bytes / 16));
    for (u64 rank = 0; rank < ranks; ++rank) {
        if (std::fread(heaps[rank].data(), 1, bytes, in) != bytes) return 3;
        call[words + rank] = reinterpret_cast<u64>(heaps[rank].data());
    }
    std::fclose(in);
    void (*const all[])(const kernels::Call *) = {kernels::dispatch, kernels::combine, kernels::low_dispatch,
                                                  kernels::low_combine};
    const auto *of = reinterpret_cast<const kernels::Call *>(call.data());
    std::vector<std::thread> blocks;
    for (u64 i = 0; i < head[1]; ++i) {
        if (i / (head[1] / ranks) == head[4]) continue;
        blocks.emplace_back([&, i] {
            kernels::number_of_block = kernels::u32(i);
            all[head[0]](of);
        });
    }
    for (auto &block : blocks) block.join();
    std::FILE *out = std::fopen(names[2], "wb");
    if (!out) return 4;
    for (const auto &heap : heaps) {
        if (std::fwrite(heap.data(), 1, bytes, out) != bytes) return 4;
    }
    return std::fclose(out) == 0 ? 0 : 4;
}
