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
    void *const memory =
        mmap(nullptr, ranks * bytes, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    if (memory == MAP_FAILED || std::fread(memory, 1, ranks * bytes, in) != ranks * bytes) return 3;
    for (u64 rank = 0; rank < ranks; ++rank) call[words + rank] = reinterpret_cast<u64>(memory) + rank * bytes;
    std::fclose(in);
    void (*const all[])(const kernels::Call *) = {kernels::dispatch, kernels::combine, kernels::low_dispatch,
                                                  kernels::low_combine};
    const auto *of = reinterpret_cast<const kernels::Call *>(call.data());
    for (u64 i = 0; i < head[1]; ++i) {
        if (i / (head[1] / ranks) == head[4]) continue;
        const pid_t block = fork();
        if (block < 0) return 5;
        if (block > 0) continue;
        kernels::number_of_block = kernels::u32(i);
        std::vector<std::thread> threads;
        for (kernels::u32 thread = 0; thread < kernels::THREADS; ++thread) {
            threads.emplace_back([&, thread] {
                kernels::number_of_thread = thread;
                all[head[0]](of);
            });
        }
        for (auto &thread : threads) thread.join();
        _exit(0);
    }
    for (int status; wait(&status) > 0;) {
        if (status != 0) return 6;
    }
    std::FILE *out = std::fopen(names[2], "wb");
    if (!out) return 4;
    if (std::fwrite(memory, 1, ranks * bytes, out) != ranks * bytes) return 4;
    return std::fclose(out) == 0 ? 0 : 4;
}
