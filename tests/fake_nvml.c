/* A libnvidia-ml.so.1 for machines without a GPU. FAKE_NVML says what it finds when it is initialised: "4xA100", "H100",
 * "0" (a driver, no GPU). Unset, there is no driver. Values are those that nvidia-smi shows for these cards; names, numbers
 * and layouts are those of NVIDIA's NVML API reference. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum {
    SUCCESS = 0,
    UNINITIALIZED = 1,
    INVALID_ARGUMENT = 2,
    NOT_SUPPORTED = 3,
    NOT_FOUND = 6,
    INSUFFICIENT_SIZE = 7,
    DRIVER_NOT_LOADED = 9
};

#define MAX_GPUS 64
#define MIB (1024ULL * 1024ULL)

typedef struct {
    const char *key, *name;
    unsigned long long memory_mib;
    int major, minor, has_mig;
    unsigned power_mw;
} Model;

static const Model models[] = {
    {"A100", "NVIDIA A100-SXM4-80GB", 81920, 8, 0, 1, 61000},
    {"A100-40GB", "NVIDIA A100-SXM4-40GB", 40960, 8, 0, 1, 52000},
    {"H100", "NVIDIA H100 80GB HBM3", 81559, 9, 0, 1, 69000},
    {"H200", "NVIDIA H200", 143771, 9, 0, 1, 76000},
    {"A10", "NVIDIA A10", 23028, 8, 6, 0, 21000},
    {"L4", "NVIDIA L4", 23034, 8, 9, 0, 12000},
    {"T4", "Tesla T4", 15360, 7, 5, 0, 9000},
    {"V100", "Tesla V100-SXM2-16GB", 16384, 7, 0, 0, 42000},
    {"RTX4090", "NVIDIA GeForce RTX 4090", 24564, 8, 9, 0, 18000},
};

typedef struct {
    unsigned index;
    char uuid[48], bus_id[32];
} Device;

typedef struct {
    unsigned long long total, free, used;
} Memory;

typedef struct {
    unsigned version;
    unsigned long long total, reserved, free, used;
} MemoryV2;

typedef struct {
    unsigned gpu, memory;
} Utilization;

typedef struct {
    char bus_id_legacy[16];
    unsigned domain, bus, device, pci_device_id, pci_subsystem_id;
    char bus_id[32];
} PciInfo;

static Device devices[MAX_GPUS];
static const Model *model;
static unsigned count;
static int users;

static int copy(char *to, unsigned length, const char *text) {
    if (!to) return INVALID_ARGUMENT;
    if (strlen(text) + 1 > length) return INSUFFICIENT_SIZE;
    strcpy(to, text);
    return SUCCESS;
}

static int bad(const Device *device) {
    if (!users) return UNINITIALIZED;
    return device >= devices && device < devices + count ? SUCCESS : INVALID_ARGUMENT;
}

int nvmlInitWithFlags(unsigned flags) {
    (void)flags;
    const char *spec = getenv("FAKE_NVML");
    if (!spec || !*spec) return DRIVER_NOT_LOADED;
    if (users++) return SUCCESS;
    char *rest;
    unsigned long asked = strtoul(spec, &rest, 10);
    const char *name = rest;
    if (rest == spec)
        asked = 1;
    else if (*rest == 'x')
        name = rest + 1;
    model = models;
    count = asked < MAX_GPUS ? (unsigned)asked : MAX_GPUS;
    if (*name) {
        model = NULL;
        for (size_t i = 0; i < sizeof models / sizeof *models; i++)
            if (!strcmp(models[i].key, name)) model = &models[i];
        if (!model) {
            fprintf(stderr, "fake_nvml: FAKE_NVML names an unknown model: %s\n", spec);
            abort();
        }
    }
    for (unsigned i = 0; i < count; i++) {
        devices[i].index = i;
        snprintf(devices[i].uuid, sizeof devices[i].uuid, "GPU-%08x-f10f-4fa1-b0e5-00005e1f%04x", 0xfa4e0000u + i, i);
        snprintf(devices[i].bus_id, sizeof devices[i].bus_id, "00000000:%02X:00.0", i + 1);
    }
    return SUCCESS;
}

int nvmlInit_v2(void) { return nvmlInitWithFlags(0); }
int nvmlInit(void) { return nvmlInitWithFlags(0); }

int nvmlShutdown(void) {
    if (!users) return UNINITIALIZED;
    users--;
    return SUCCESS;
}

const char *nvmlErrorString(int code) {
    switch (code) {
    case SUCCESS: return "Success";
    case UNINITIALIZED: return "Uninitialized";
    case INVALID_ARGUMENT: return "Invalid Argument";
    case NOT_SUPPORTED: return "Not Supported";
    case NOT_FOUND: return "Not Found";
    case INSUFFICIENT_SIZE: return "Insufficient Size";
    case DRIVER_NOT_LOADED: return "Driver Not Loaded";
    default: return "Unknown Error";
    }
}

int nvmlSystemGetDriverVersion(char *text, unsigned length) {
    return users ? copy(text, length, "550.54.15") : UNINITIALIZED;
}

int nvmlSystemGetNVMLVersion(char *text, unsigned length) { return copy(text, length, "12.550.54.15"); }

int nvmlSystemGetCudaDriverVersion(int *version) {
    *version = 12040;
    return SUCCESS;
}

int nvmlSystemGetCudaDriverVersion_v2(int *version) { return nvmlSystemGetCudaDriverVersion(version); }

int nvmlDeviceGetCount_v2(unsigned *result) {
    if (!users) return UNINITIALIZED;
    *result = count;
    return SUCCESS;
}

int nvmlDeviceGetHandleByIndex_v2(unsigned index, Device **result) {
    if (!users) return UNINITIALIZED;
    if (index >= count) return INVALID_ARGUMENT;
    *result = &devices[index];
    return SUCCESS;
}

int nvmlDeviceGetHandleByUUID(const char *uuid, Device **result) {
    if (!users) return UNINITIALIZED;
    for (unsigned i = 0; i < count; i++)
        if (!strcmp(devices[i].uuid, uuid)) return nvmlDeviceGetHandleByIndex_v2(i, result);
    return NOT_FOUND;
}

int nvmlDeviceGetIndex(Device *device, unsigned *result) {
    if (bad(device)) return bad(device);
    *result = device->index;
    return SUCCESS;
}

int nvmlDeviceGetMinorNumber(Device *device, unsigned *result) { return nvmlDeviceGetIndex(device, result); }

int nvmlDeviceGetName(Device *device, char *text, unsigned length) {
    return bad(device) ? bad(device) : copy(text, length, model->name);
}

int nvmlDeviceGetUUID(Device *device, char *text, unsigned length) {
    return bad(device) ? bad(device) : copy(text, length, device->uuid);
}

int nvmlDeviceGetMemoryInfo(Device *device, Memory *memory) {
    if (bad(device)) return bad(device);
    memory->total = model->memory_mib * MIB;
    memory->used = 4 * MIB;
    memory->free = memory->total - memory->used;
    return SUCCESS;
}

int nvmlDeviceGetMemoryInfo_v2(Device *device, MemoryV2 *memory) {
    if (bad(device)) return bad(device);
    memory->total = model->memory_mib * MIB;
    memory->reserved = 600 * MIB;
    memory->used = 4 * MIB;
    memory->free = memory->total - memory->reserved - memory->used;
    return SUCCESS;
}

int nvmlDeviceGetUtilizationRates(Device *device, Utilization *rates) {
    if (bad(device)) return bad(device);
    rates->gpu = rates->memory = 0;
    return SUCCESS;
}

int nvmlDeviceGetTemperature(Device *device, int sensor, unsigned *celsius) {
    if (bad(device)) return bad(device);
    if (sensor) return INVALID_ARGUMENT;
    *celsius = 31;
    return SUCCESS;
}

int nvmlDeviceGetPowerUsage(Device *device, unsigned *milliwatts) {
    if (bad(device)) return bad(device);
    *milliwatts = model->power_mw;
    return SUCCESS;
}

int nvmlDeviceGetCudaComputeCapability(Device *device, int *major, int *minor) {
    if (bad(device)) return bad(device);
    *major = model->major;
    *minor = model->minor;
    return SUCCESS;
}

int nvmlDeviceGetComputeMode(Device *device, int *mode) {
    if (bad(device)) return bad(device);
    *mode = 0;
    return SUCCESS;
}

int nvmlDeviceGetMigMode(Device *device, unsigned *current, unsigned *pending) {
    if (bad(device)) return bad(device);
    if (!model->has_mig) return NOT_SUPPORTED;
    *current = *pending = 0;
    return SUCCESS;
}

int nvmlDeviceGetPciInfo_v3(Device *device, PciInfo *pci) {
    if (bad(device)) return bad(device);
    memset(pci, 0, sizeof *pci);
    pci->bus = device->index + 1;
    snprintf(pci->bus_id_legacy, sizeof pci->bus_id_legacy, "0000:%02X:00.0", pci->bus);
    return copy(pci->bus_id, sizeof pci->bus_id, device->bus_id);
}

int nvmlDeviceGetComputeRunningProcesses_v3(Device *device, unsigned *length, void *processes) {
    (void)processes;
    if (bad(device)) return bad(device);
    *length = 0;
    return SUCCESS;
}

int nvmlDeviceGetComputeRunningProcesses_v2(Device *device, unsigned *length, void *processes) {
    return nvmlDeviceGetComputeRunningProcesses_v3(device, length, processes);
}
