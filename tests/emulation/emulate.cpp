// The machine behind emulate.h: a fiber per CUDA thread, blocks in turn, guarded buffers.
//
// A fiber runs until it waits at a barrier or an operation of its warp, or ends; then the next
// one is chosen by the schedule. A program that is free of races gives the same result for every
// schedule. When no fiber can run and some are left, the reason is the error of the launch.
#include "emulate.h"

#include <algorithm>
#include <csignal>
#include <cstdarg>
#include <cstdio>
#include <cstdlib>
#include <dlfcn.h>
#include <link.h>
#include <map>
#include <pthread.h>
#include <string>
#include <sys/mman.h>
#include <ucontext.h>
#include <unistd.h>
#include <vector>

dim3 threadIdx, blockIdx, blockDim, gridDim;

namespace {

constexpr size_t PAGE = 4096;
constexpr size_t STACK_BYTES = 64 * 1024;
constexpr size_t STACK_GUARD_BYTES = 4 * PAGE;
constexpr unsigned MAX_THREADS = 1024;
constexpr unsigned MAX_DYNAMIC_SHARED_BYTES = 227 * 1024;
/// NaN as a half, a bfloat16 and a float; what a guarded buffer must not lose around it.
constexpr uint16_t CANARY = 0x7ffd;
/// NaN too, and different.
constexpr unsigned char POISON = 0xff;
constexpr size_t FRONT_CANARY_BYTES = 256;

enum class Schedule { Forward, Reverse, Shuffled };

#ifdef __x86_64__
using Context = void*;

// Keeps the registers that calls preserve on the old stack and takes them from the new one.
asm(R"(
.text
.p2align 4
.type emulate_switch, @function
emulate_switch:
    pushq %rbp
    pushq %rbx
    pushq %r12
    pushq %r13
    pushq %r14
    pushq %r15
    movq %rsp, (%rdi)
    movq (%rsi), %rsp
    popq %r15
    popq %r14
    popq %r13
    popq %r12
    popq %rbx
    popq %rbp
    ret
.size emulate_switch, .-emulate_switch
)");
extern "C" __attribute__((visibility("hidden"))) void emulate_switch(Context* from, Context* to);
void switch_to(Context& from, Context& to) { emulate_switch(&from, &to); }

/// A fiber that begins with `entry` on the stack that ends at `top`.
void prepare(Context& context, char* stack, char* top, void (*entry)()) {
    (void)stack;
    void** frame = reinterpret_cast<void**>(reinterpret_cast<uintptr_t>(top) & ~uintptr_t(63));
    *--frame = nullptr;  // Where a return address would be: `entry` does not return.
    *--frame = reinterpret_cast<void*>(entry);
    for (int i = 0; i < 6; ++i) *--frame = nullptr;
    context = frame;
}
#else
using Context = ucontext_t;
void switch_to(Context& from, Context& to) { swapcontext(&from, &to); }
void prepare(Context& context, char* stack, char* top, void (*entry)()) {
    getcontext(&context);
    context.uc_stack.ss_sp = stack;
    context.uc_stack.ss_size = size_t(top - stack);
    context.uc_link = nullptr;
    makecontext(&context, entry, 0);
}
#endif

struct Copy {
    void* shared;
    const void* global;
    unsigned bytes, valid;
};

struct Lane {
    Context context;
    dim3 index;
    enum { Running, InWarp, AtBarrier, Done } state;
    // What it waits for.
    const char* name;
    const char* file;
    int line;
    unsigned mask;
    void* data;
    emulate::Combine combine;
    // Asynchronous copies by group; the last one is still open.
    std::vector<std::vector<Copy>> copies;
};

struct Launch {
    const emulate::Kernel* kernel;
    void** arguments;
    unsigned threads, warps, alive, at_barrier;
    unsigned ready[32];       // Lanes that can run, by warp.
    unsigned ready_warps;     // Warps with such a lane.
    unsigned current;         // Thread that runs.
    unsigned warp;            // Its warp, preferred for the next.
    char* shared;
    bool running;
    pthread_t runner;
    Context context;          // Of the launching function.
};

struct Buffer {
    char* mapping;
    size_t mapped_bytes, bytes;
};

emulate::Kernel* kernels;
Lane lanes[MAX_THREADS];
char* stacks;
Launch launch;
Schedule schedule;
uint64_t random_state = 1;
std::string error;
bool failed;
std::map<char*, Buffer> buffers;
struct sigaction previous[NSIG];

unsigned random(unsigned below) {
    random_state ^= random_state << 13;
    random_state ^= random_state >> 7;
    random_state ^= random_state << 17;
    return unsigned((random_state >> 32) * below >> 32);
}

/// One of the bits that are set, as the schedule wants.
unsigned choose(unsigned set) {
    switch (schedule) {
        case Schedule::Forward: return unsigned(__builtin_ctz(set));
        case Schedule::Reverse: return 31 - unsigned(__builtin_clz(set));
        default: {
            unsigned turn = random(32);
            unsigned turned = turn ? set >> turn | set << (32 - turn) : set;
            return (unsigned(__builtin_ctz(turned)) + turn) & 31;
        }
    }
}

void set_ready(unsigned thread) {
    lanes[thread].state = Lane::Running;
    launch.ready[thread / 32] |= 1u << thread % 32;
    launch.ready_warps |= 1u << thread / 32;
}

void set_waiting(unsigned thread) {
    if (!(launch.ready[thread / 32] &= ~(1u << thread % 32))) launch.ready_warps &= ~(1u << thread / 32);
}

[[noreturn]] void leave() {
    failed = true;
    Context abandoned;
    switch_to(abandoned, launch.context);
    abort();
}

std::string where(unsigned thread) {
    const Lane& lane = lanes[thread];
    char text[160];
    snprintf(text, sizeof text, "thread (%u, %u, %u)", lane.index.x, lane.index.y, lane.index.z);
    return text;
}

std::string waiting_at(unsigned thread) {
    const Lane& lane = lanes[thread];
    if (lane.state == Lane::Done) return where(thread) + " has ended";
    const char* file = strrchr(lane.file, '/');
    char text[240];
    snprintf(text, sizeof text, " waits at %s, %s:%d", lane.name, file ? file + 1 : lane.file, lane.line);
    std::string result = where(thread) + text;
    if (lane.state == Lane::InWarp) {
        snprintf(text, sizeof text, ", for lanes %08x", lane.mask);
        result += text;
    }
    return result;
}

bool same_site(const Lane& a, const Lane& b) {
    return a.line == b.line && (a.file == b.file || !strcmp(a.file, b.file));
}

/// Nothing can run: lets all go on if they are at one barrier, else says who waits for what.
void release_barrier() {
    unsigned first = MAX_THREADS, other = MAX_THREADS;
    for (unsigned t = 0; t < launch.threads; ++t) {
        if (lanes[t].state == Lane::Done) continue;
        if (first == MAX_THREADS) first = t;
        const Lane &a = lanes[first], &b = lanes[t];
        if (other == MAX_THREADS && (a.state != b.state || !same_site(a, b))) other = t;
    }
    if (other == MAX_THREADS && lanes[first].state == Lane::InWarp) {
        // A lane that ended, or one that the block does not have.
        for (unsigned lane = 0; lane < 32; ++lane) {
            unsigned t = first / 32 * 32 + lane;
            if (!(lanes[first].mask >> lane & 1)) continue;
            if (t >= launch.threads) emulate::fail("absent lane: %s, but the block has %u threads", waiting_at(first).c_str(), launch.threads);
            if (lanes[t].state == Lane::Done) other = t;
        }
    }
    if (other != MAX_THREADS) {
        emulate::fail("divergence: %s; %s", waiting_at(first).c_str(), waiting_at(other).c_str());
    }
    if (lanes[first].state == Lane::InWarp) emulate::fail("deadlock: %s", waiting_at(first).c_str());
    for (unsigned t = 0; t < launch.threads; ++t)
        if (lanes[t].state == Lane::AtBarrier) set_ready(t);
}

/// Runs the next fiber; comes back when this one is next again.
void yield() {
    if (!launch.ready_warps && launch.alive) release_barrier();
    Lane& own = lanes[launch.current];
    if (!launch.alive) {
        switch_to(own.context, launch.context);
        return;
    }
    bool stay = launch.ready_warps >> launch.warp & 1;
    if (stay && schedule == Schedule::Shuffled) stay = random(8) != 0;
    if (!stay) launch.warp = choose(launch.ready_warps);
    unsigned next = launch.warp * 32 + choose(launch.ready[launch.warp]);
    if (next == launch.current) return;
    launch.current = next;
    threadIdx = lanes[next].index;
    switch_to(own.context, lanes[next].context);
}

void run_thread() {
    launch.kernel->call(launch.kernel->function, launch.arguments);
    Lane& own = lanes[launch.current];
    own.state = Lane::Done;
    own.copies.clear();
    set_waiting(launch.current);
    --launch.alive;
    yield();
    abort();
}

char* stack_of(unsigned thread) { return stacks + thread * (STACK_BYTES + STACK_GUARD_BYTES) + STACK_GUARD_BYTES; }

void make_stacks() {
    size_t bytes = MAX_THREADS * (STACK_BYTES + STACK_GUARD_BYTES);
    stacks = static_cast<char*>(mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0));
    if (stacks == MAP_FAILED) abort();
    for (unsigned t = 0; t < MAX_THREADS; ++t) mprotect(stack_of(t) - STACK_GUARD_BYTES, STACK_GUARD_BYTES, PROT_NONE);
}

/// The static shared memory of all kernels: the library's thread-local storage.
struct StaticShared {
    char* begin;
    size_t bytes;
};

int find_static_shared(dl_phdr_info* info, size_t, void* found) {
    uintptr_t own = reinterpret_cast<uintptr_t>(&find_static_shared);
    bool ours = false;
    size_t bytes = 0;
    for (int i = 0; i < info->dlpi_phnum; ++i) {
        const auto& header = info->dlpi_phdr[i];
        uintptr_t start = info->dlpi_addr + header.p_vaddr;
        if (header.p_type == PT_LOAD && own >= start && own < start + header.p_memsz) ours = true;
        if (header.p_type == PT_TLS) bytes = header.p_memsz;
    }
    if (!ours) return 0;
    *static_cast<StaticShared*>(found) = {static_cast<char*>(info->dlpi_tls_data), bytes};
    return 1;
}

StaticShared static_shared() {
    // Touched first: a thread's storage is made when it is first used.
    static thread_local volatile char touched;
    touched = 0;
    (void)touched;
    StaticShared found{nullptr, 0};
    dl_iterate_phdr(find_static_shared, &found);
    return found.begin ? found : StaticShared{nullptr, 0};
}

void run_block(const StaticShared& memory, unsigned shared_bytes) {
    memset(memory.begin, POISON, memory.bytes);
    memset(launch.shared, POISON, shared_bytes);
    launch.alive = launch.threads;
    launch.ready_warps = 0;
    memset(launch.ready, 0, sizeof launch.ready);
    for (unsigned t = 0; t < launch.threads; ++t) {
        lanes[t].copies.clear();
        set_ready(t);
        // Stacks begin at different cache lines, or all would fall into the same sets.
        prepare(lanes[t].context, stack_of(t), stack_of(t) + STACK_BYTES - t % 21 * 192, run_thread);
    }
    launch.warp = choose(launch.ready_warps);
    launch.current = launch.warp * 32 + choose(launch.ready[launch.warp]);
    threadIdx = lanes[launch.current].index;
    switch_to(launch.context, lanes[launch.current].context);
}

/// Says where an address lies with respect to the buffers.
std::string describe(char* address) {
    char text[200];
    for (const auto& entry : buffers) {
        const Buffer& buffer = entry.second;
        if (address < buffer.mapping || address >= buffer.mapping + buffer.mapped_bytes) continue;
        long offset = long(address - entry.first);
        snprintf(text, sizeof text, "at byte %ld of a buffer of %zu bytes", offset, buffer.bytes);
        return text;
    }
    if (launch.shared && address >= launch.shared && address < launch.shared + PAGE + MAX_DYNAMIC_SHARED_BYTES) return "behind the dynamic shared memory";
    if (address >= stacks && address < stacks + MAX_THREADS * (STACK_BYTES + STACK_GUARD_BYTES)) return "of a local variable: the stack is full";
    snprintf(text, sizeof text, "at %p, outside every buffer", static_cast<void*>(address));
    return text;
}

void on_fault(int signal, siginfo_t* info, void* context) {
    if (!launch.running || !pthread_equal(pthread_self(), launch.runner)) {
        sigaction(signal, &previous[signal], nullptr);
        return;  // The instruction runs again, and whoever was here before us handles it.
    }
    const char* access = "access";
#ifdef __x86_64__
    auto machine = &static_cast<ucontext_t*>(context)->uc_mcontext;
    access = machine->gregs[REG_ERR] & 2 ? "write" : "read";
#else
    (void)context;
#endif
    sigset_t set;
    sigemptyset(&set);
    sigaddset(&set, signal);
    pthread_sigmask(SIG_UNBLOCK, &set, nullptr);
    if (signal == SIGILL || signal == SIGTRAP) {
        emulate::fail("misaligned access or index outside an array, %s", where(launch.current).c_str());
    }
    if (signal == SIGFPE) emulate::fail("division by zero, %s", where(launch.current).c_str());
    emulate::fail("out of bounds: %s %s, %s", access, describe(static_cast<char*>(info->si_addr)).c_str(), where(launch.current).c_str());
}

constexpr int FAULTS[] = {SIGSEGV, SIGBUS, SIGILL, SIGTRAP, SIGFPE};

/// Faults of kernels become errors while this exists; runs on its own signal stack, because the
/// fault may be a full one.
struct Faults {
    stack_t old_stack;
    static char stack[64 * 1024];
    Faults() {
        stack_t own{};
        own.ss_sp = stack;
        own.ss_size = sizeof stack;
        sigaltstack(&own, &old_stack);
        struct sigaction action {};
        action.sa_sigaction = on_fault;
        action.sa_flags = SA_SIGINFO | SA_ONSTACK;
        for (int signal : FAULTS) sigaction(signal, &action, &previous[signal]);
    }
    ~Faults() {
        for (int signal : FAULTS) sigaction(signal, &previous[signal], nullptr);
        sigaltstack(&old_stack, nullptr);
    }
};
char Faults::stack[64 * 1024];

void paint(char* from, char* to) {
    for (char* p = from; p < to; ++p) *p = reinterpret_cast<const char*>(&CANARY)[reinterpret_cast<uintptr_t>(p) & 1];
}

char* map_guarded(size_t bytes, Buffer& buffer) {
    size_t inner = (bytes + PAGE - 1) / PAGE * PAGE;
    buffer.mapped_bytes = inner + 2 * PAGE;
    buffer.bytes = bytes;
    void* mapping = mmap(nullptr, buffer.mapped_bytes, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (mapping == MAP_FAILED) return nullptr;
    buffer.mapping = static_cast<char*>(mapping);
    if (inner && mprotect(buffer.mapping + PAGE, inner, PROT_READ | PROT_WRITE)) return nullptr;
    char* end = buffer.mapping + PAGE + inner;
    char* data = end - (bytes + 15) / 16 * 16;
    paint(buffer.mapping + PAGE, data);
    paint(data + bytes, end);
    memset(data, POISON, bytes);
    return data;
}

bool intact(const char* from, const char* to) {
    for (const char* p = from; p < to; ++p) {
        char expected = reinterpret_cast<const char*>(&CANARY)[reinterpret_cast<uintptr_t>(p) & 1];
        if (*p != expected) return false;
    }
    return true;
}

/// Whether nothing was written around a buffer; before it, as far as `front` bytes.
bool intact(const char* data, const Buffer& buffer, size_t front) {
    const char* begin = buffer.mapping + PAGE;
    const char* end = buffer.mapping + buffer.mapped_bytes - PAGE;
    if (size_t(data - begin) > front) begin = data - front;
    return intact(begin, data) && intact(data + buffer.bytes, end);
}

/// The order in which blocks run.
std::vector<unsigned> block_order(unsigned blocks) {
    std::vector<unsigned> order(blocks);
    for (unsigned i = 0; i < blocks; ++i) order[i] = schedule == Schedule::Reverse ? blocks - 1 - i : i;
    if (schedule == Schedule::Shuffled)
        for (unsigned i = blocks; i > 1; --i) std::swap(order[i - 1], order[random(i)]);
    return order;
}

void run_grid(const unsigned grid[3], const unsigned block[3], unsigned shared_bytes) {
    if (!stacks) make_stacks();
    gridDim = {grid[0], grid[1], grid[2]};
    blockDim = {block[0], block[1], block[2]};
    launch.threads = block[0] * block[1] * block[2];
    for (unsigned t = 0; t < launch.threads; ++t)
        lanes[t].index = {t % block[0], t / block[0] % block[1], t / (block[0] * block[1])};
    StaticShared memory = static_shared();
    Faults faults;
    launch.runner = pthread_self();
    launch.running = true;
    for (unsigned i : block_order(grid[0] * grid[1] * grid[2])) {
        blockIdx = {i % grid[0], i / grid[0] % grid[1], i / (grid[0] * grid[1])};
        run_block(memory, shared_bytes);
        if (failed) break;
    }
    launch.running = false;
}

void refuse(const char* format, ...) __attribute__((format(printf, 1, 2)));
void refuse(const char* format, ...) {
    char text[400];
    va_list list;
    va_start(list, format);
    vsnprintf(text, sizeof text, format, list);
    va_end(list);
    error = text;
    failed = true;
}

}  // namespace

namespace emulate {

Kernel::Kernel(const char* name, void* function, Call call, int parameters)
    : name(name), function(function), call(call), parameters(parameters), next(kernels) {
    kernels = this;
}

void fail(const char* format, ...) {
    char text[600];
    int length = snprintf(text, sizeof text, "%s, block (%u, %u, %u): ", launch.kernel->name, blockIdx.x, blockIdx.y, blockIdx.z);
    va_list list;
    va_start(list, format);
    vsnprintf(text + length, sizeof text - size_t(length), format, list);
    va_end(list);
    error = text;
    leave();
}

unsigned lane() { return launch.current % 32; }
void* dynamic_shared() { return launch.shared; }

void barrier(const char* file, int line) {
    Lane& own = lanes[launch.current];
    own.state = Lane::AtBarrier;
    own.name = "__syncthreads";
    own.file = file;
    own.line = line;
    set_waiting(launch.current);
    yield();
}

void collective(const char* name, unsigned mask, void* data, Combine combine, const char* file, int line) {
    unsigned first = launch.current / 32 * 32;
    Lane& own = lanes[launch.current];
    own.state = Lane::InWarp;
    own.name = name;
    own.file = file;
    own.line = line;
    own.mask = mask;
    own.data = data;
    own.combine = combine;
    set_waiting(launch.current);
    if (!(mask >> launch.current % 32 & 1)) fail("%s, but not in the mask %08x", waiting_at(launch.current).c_str(), mask);
    void* all[32] = {};
    bool complete = true;
    for (unsigned left = mask; left && complete; left &= left - 1) {
        unsigned lane = unsigned(__builtin_ctz(left));
        const Lane& other = lanes[first + lane];
        complete = first + lane < launch.threads && other.state == Lane::InWarp && other.combine == combine && other.mask == mask && same_site(other, own);
        all[lane] = other.data;
    }
    if (complete) {
        combine(all, mask);
        for (unsigned left = mask; left; left &= left - 1) set_ready(first + unsigned(__builtin_ctz(left)));
    }
    yield();
}

static void aligned(const void* p, unsigned bytes, const char* what) {
    if (reinterpret_cast<uintptr_t>(p) % bytes) fail("misaligned access: %s at an address that is no multiple of %u, %s", what, bytes, where(launch.current).c_str());
}

void copy_async(void* shared, const void* global, unsigned bytes, unsigned valid) {
    aligned(shared, bytes, "cp.async to shared memory");
    aligned(global, bytes, "cp.async from global memory");
    auto& copies = lanes[launch.current].copies;
    if (copies.empty()) copies.emplace_back();
    copies.back().push_back({shared, global, bytes, valid});
}

void commit_copies() {
    auto& copies = lanes[launch.current].copies;
    if (copies.empty()) copies.emplace_back();
    copies.emplace_back();
}

void wait_copies(unsigned groups_left) {
    auto& copies = lanes[launch.current].copies;
    // The open group is not waited for.
    size_t committed = copies.empty() ? 0 : copies.size() - 1;
    size_t due = committed > groups_left ? committed - groups_left : 0;
    for (size_t group = 0; group < due; ++group) {
        for (const Copy& copy : copies[group]) {
            memcpy(copy.shared, copy.global, copy.valid);
            memset(static_cast<char*>(copy.shared) + copy.valid, 0, copy.bytes - copy.valid);
        }
    }
    copies.erase(copies.begin(), copies.begin() + long(due));
}

/// `NUMBER` is what 16 bits of an input mean.
template <float (*NUMBER)(uint16_t)>
struct Mma {
    float* d;
    const unsigned* a;
    const unsigned* b;
    static void combine(Lanes lanes, unsigned) {
        // Row of `a` and `d`: lane / 4, and 8 more; column of `b` and `d` and place of the pair
        // in k as in the figures of the manual.
        float a[16][16], b[16][8], d[16][8];
        for (unsigned lane = 0; lane < 32; ++lane) {
            const Mma& own = *static_cast<const Mma*>(lanes[lane]);
            unsigned group = lane / 4, pair = lane % 4 * 2;
            for (unsigned i = 0; i < 4; ++i) {
                unsigned row = group + i % 2 * 8, k = pair + i / 2 * 8;
                a[row][k] = NUMBER(uint16_t(own.a[i]));
                a[row][k + 1] = NUMBER(uint16_t(own.a[i] >> 16));
            }
            for (unsigned i = 0; i < 2; ++i) {
                b[pair + i * 8][group] = NUMBER(uint16_t(own.b[i]));
                b[pair + i * 8 + 1][group] = NUMBER(uint16_t(own.b[i] >> 16));
            }
            for (unsigned i = 0; i < 4; ++i) d[group + i / 2 * 8][pair + i % 2] = own.d[i];
        }
        for (unsigned row = 0; row < 16; ++row) {
            float sum[8] = {};
            for (unsigned k = 0; k < 16; ++k)
                for (unsigned column = 0; column < 8; ++column) sum[column] += a[row][k] * b[k][column];
            for (unsigned column = 0; column < 8; ++column) d[row][column] += sum[column];
        }
        for (unsigned lane = 0; lane < 32; ++lane) {
            const Mma& own = *static_cast<const Mma*>(lanes[lane]);
            for (unsigned i = 0; i < 4; ++i) own.d[i] = d[lane / 4 + i / 2 * 8][lane % 4 * 2 + i % 2];
        }
    }
};

template <float (*NUMBER)(uint16_t)>
static void mma(float* d, const unsigned* a, const unsigned* b) {
    Mma<NUMBER> own{d, a, b};
    collective("mma.sync", 0xffffffffu, &own, &Mma<NUMBER>::combine, "mma", 0);
}

static float bf16_to_float(uint16_t upper) {
    uint32_t word = uint32_t(upper) << 16;
    float value;
    memcpy(&value, &word, sizeof value);
    return value;
}

void mma_m16n8k16(float (&d)[4], const unsigned (&a)[4], const unsigned (&b)[2]) { mma<half_to_float>(d, a, b); }
void mma_m16n8k16_bf16(float (&d)[4], const unsigned (&a)[4], const unsigned (&b)[2]) { mma<bf16_to_float>(d, a, b); }

/// Matrix i of eight rows of 16 bytes: lanes 8 i to 8 i + 7 give the addresses; lane l takes the
/// l-th pair of halves, or of the transposed matrix.
template <unsigned MATRICES>
struct Ldmatrix {
    unsigned* d;
    const void* row;
    bool transposed;
    static void combine(Lanes lanes, unsigned) {
        for (unsigned i = 0; i < MATRICES; ++i) {
            uint16_t matrix[8][8];
            for (unsigned r = 0; r < 8; ++r) memcpy(matrix[r], static_cast<const Ldmatrix*>(lanes[i * 8 + r])->row, 16);
            for (unsigned lane = 0; lane < 32; ++lane) {
                const Ldmatrix& own = *static_cast<const Ldmatrix*>(lanes[lane]);
                unsigned r = lane / 4, c = lane % 4 * 2;
                unsigned low = own.transposed ? matrix[c][r] : matrix[r][c];
                unsigned high = own.transposed ? matrix[c + 1][r] : matrix[r][c + 1];
                own.d[i] = low | high << 16;
            }
        }
    }
};

template <unsigned MATRICES>
static void ldmatrix(unsigned* d, const void* row, bool transposed) {
    // Rows of lanes that no matrix asks for are not read.
    if (lane() < MATRICES * 8) aligned(row, 16, "ldmatrix");
    Ldmatrix<MATRICES> own{d, row, transposed};
    collective("ldmatrix", 0xffffffffu, &own, &Ldmatrix<MATRICES>::combine, "ldmatrix", 0);
}

void ldmatrix_x4(unsigned (&d)[4], const void* row, bool transposed) { ldmatrix<4>(d, row, transposed); }
void ldmatrix_x2(unsigned (&d)[2], const void* row, bool transposed) { ldmatrix<2>(d, row, transposed); }

}  // namespace emulate

#define EXPORT extern "C" __attribute__((visibility("default")))

/// Guarded, poisoned memory that ends (up to the next 16 bytes) where no access is allowed; null
/// if there is none.
EXPORT void* emulate_alloc(size_t bytes) {
    Buffer buffer;
    char* data = map_guarded(bytes, buffer);
    if (data) buffers[data] = buffer;
    return data;
}

/// 0, or 1 if something was written around the buffer, or 2 if there is no such buffer.
EXPORT int emulate_free(void* pointer) {
    auto found = buffers.find(static_cast<char*>(pointer));
    if (found == buffers.end()) return 2;
    bool fine = intact(found->first, found->second, SIZE_MAX);
    munmap(found->second.mapping, found->second.mapped_bytes);
    buffers.erase(found);
    return fine ? 0 : 1;
}

EXPORT void emulate_schedule(int kind, unsigned seed) {
    schedule = kind == 0 ? Schedule::Forward : kind == 1 ? Schedule::Reverse : Schedule::Shuffled;
    random_state = 0x9e3779b97f4a7c15ull * (seed + 1ull) | 1;
}

EXPORT const char* emulate_error() { return error.c_str(); }

/// Number of parameters of a kernel, or -1 if there is none of that name.
EXPORT int emulate_parameters(const char* name) {
    for (const emulate::Kernel* kernel = kernels; kernel; kernel = kernel->next)
        if (!strcmp(kernel->name, name)) return kernel->parameters;
    return -1;
}

EXPORT int emulate_launch(const char* name, const unsigned grid[3], const unsigned block[3], unsigned shared_bytes, void** arguments) {
    failed = false;
    launch.kernel = nullptr;
    for (const emulate::Kernel* kernel = kernels; kernel; kernel = kernel->next)
        if (!strcmp(kernel->name, name)) launch.kernel = kernel;
    uint64_t threads = uint64_t(block[0]) * block[1] * block[2];
    if (!launch.kernel) {
        refuse("no kernel is named %s", name);
    } else if (!threads || threads > MAX_THREADS || block[2] > 64) {
        refuse("%s: a block of %u x %u x %u threads", name, block[0], block[1], block[2]);
    } else if (!grid[0] || !grid[1] || !grid[2] || grid[0] > 0x7fffffff || grid[1] > 65535 || grid[2] > 65535) {
        refuse("%s: a grid of %u x %u x %u blocks", name, grid[0], grid[1], grid[2]);
    } else if (shared_bytes > MAX_DYNAMIC_SHARED_BYTES) {
        refuse("%s: %u bytes of dynamic shared memory, more than %u", name, shared_bytes, MAX_DYNAMIC_SHARED_BYTES);
    } else {
        Buffer shared;
        launch.arguments = arguments;
        launch.shared = map_guarded(shared_bytes, shared);
        if (!launch.shared) {
            refuse("%s: no memory", name);
            return 1;
        }
        run_grid(grid, block, shared_bytes);
        if (!failed && !intact(launch.shared, shared, SIZE_MAX)) refuse("%s: a write around the dynamic shared memory", name);
        munmap(shared.mapping, shared.mapped_bytes);
        launch.shared = nullptr;
        for (auto& entry : buffers) {
            const Buffer& buffer = entry.second;
            if (intact(entry.first, buffer, FRONT_CANARY_BYTES)) continue;
            if (!failed) refuse("%s: out of bounds: a write just outside a buffer of %zu bytes", name, buffer.bytes);
            // Said once, not of the next launch too.
            paint(buffer.mapping + PAGE, entry.first);
            paint(entry.first + buffer.bytes, buffer.mapping + buffer.mapped_bytes - PAGE);
        }
    }
    return failed;
}
