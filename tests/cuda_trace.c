// 一块假的卡，像一块 3090：数得到，问得到型号与显存，没有上下文，什么也算不了。
// 先于 libcudart 载入，torch 就以为有卡；假张量（FakeTensorMode）用不着它真的算。
#include <stddef.h>
#include <string.h>

struct properties { // cudaDeviceProp 开头的几项，CUDA 12 与 13 相同
    char name[256], uuid[16], luid[8];
    unsigned node_mask;
    size_t memory, shared_memory;
    int registers, warp;
    size_t pitch;
    int threads, dimensions[3], grid[3];
    size_t constants;
    int major, minor;
};

static const size_t memory = (size_t)24 << 30;

int cudaGetDeviceCount(int *count) { *count = 1; return 0; }
int cudaGetDevice(int *device) { *device = 0; return 0; }
int cudaSetDevice(int device) { return 0; }
int cudaGetLastError(void) { return 0; }
int cudaDriverGetVersion(int *version) { *version = 13000; return 0; }
int cudaDeviceGetStreamPriorityRange(int *least, int *greatest) { *least = *greatest = 0; return 0; }
int cudaStreamIsCapturing(void *stream, int *status) { *status = 0; return 0; }
int cudaMemGetInfo(size_t *free, size_t *total) { *free = *total = memory; return 0; }
int cuDevicePrimaryCtxGetState(int device, unsigned *flags, int *active) { *flags = 0; *active = 0; return 0; }
int cudaGetDeviceProperties(struct properties *found, int device) {
    strcpy(found->name, "NVIDIA GeForce RTX 3090");
    found->memory = memory, found->warp = 32, found->major = 8, found->minor = 6;
    return 0;
}
