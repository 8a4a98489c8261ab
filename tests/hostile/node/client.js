// SPDX-License-Identifier: Apache-2.0
// A client of one shard that is nothing but the stock stub of grpc-js over rowhouse.proto.
//
//     node client.js ENDPOINT PROTO_FILE
//
// It pulls, pushes twice under one number, opens calls that never send their message, makes wrong calls,
// and prints what came back as one line of JSON: arrays as hex, refusals as "CODE ErrorName details".
"use strict";
const grpc = require("@grpc/grpc-js");
const loader = require("@grpc/proto-loader");

const [endpoint, file] = process.argv.slice(2);
const definition = loader.loadSync(file, { keepCase: true, longs: String, enums: String, defaults: true });
const { ParameterService } = grpc.loadPackageDefinition(definition).rowhouse.v1;
const client = new ParameterService(endpoint, grpc.credentials.createInsecure());

function call(method, request) {
  return new Promise((resolve, reject) => {
    client[method](request, { deadline: Date.now() + 60000 }, (error, answer) =>
      error ? reject(error) : resolve(answer));
  });
}

async function refusal(method, request) {
  try {
    await call(method, request);
    return "OK";
  } catch (error) {
    return `${grpc.status[error.code]} ${error.metadata.get("rowhouse-error")} ${error.details}`;
  }
}

function silent(method) {
  const path = `/rowhouse.v1.ParameterService/${method}`;
  const same = (data) => data;
  const stream = client.makeClientStreamRequest(path, same, same, () => {});
  stream.on("error", () => {});
  return stream;
}

async function main() {
  const ids = Buffer.alloc(16);
  ids.writeBigUInt64LE(5n, 0);
  ids.writeBigUInt64LE(0xffffffffffffffffn, 8);
  const gradients = Buffer.alloc(2 * 4 * 4);
  for (let i = 0; i < 8; i++) gradients.writeFloatLE(0.25 * (i - 3), 4 * i);
  const { map_version } = await call("GetCluster", {});
  const pull = { map_version, dtype: "DTYPE_FLOAT32", tables: [{ table: "user", dim: 4, count: 2, ids }] };
  const part = { table: "user", dim: 4, count: 2, dtype: "DTYPE_FLOAT32", ids, gradients };
  const push = { map_version, client_id: "77", sequence: "1", tables: [part] };
  const rows = async () => (await call("Pull", pull)).tables[0].rows.toString("hex");

  const found = { before: await rows() };
  found.first = await call("Push", push);
  found.again = await call("Push", push);
  found.after = await rows();
  const streams = ["Push", "Pull", "Contribute", "GetStats", "GetCluster", "CreateCheckpoint"]
    .flatMap((method) => Array.from({ length: 8 }, () => silent(method)));
  await new Promise((resolve) => setTimeout(resolve, 200)); // so that the calls are at the shard
  found.stats = await call("GetStats", {});
  found.beside = await rows();
  streams.forEach((stream) => stream.cancel());
  found.refused = {
    gap: await refusal("Push", { ...push, sequence: "9" }),
    dim: await refusal("Pull", { ...pull, tables: [{ ...pull.tables[0], dim: 5 }] }),
    table: await refusal("Pull", { ...pull, tables: [{ ...pull.tables[0], table: "nobody" }] }),
    ids: await refusal("Pull", { ...pull, tables: [{ ...pull.tables[0], ids: ids.subarray(1) }] }),
    map: await refusal("Push", { ...push, sequence: "2", map_version: "1" }),
  };
  found.end = await rows();
  console.log(JSON.stringify(found));
  client.close();
}

main().catch((error) => {
  console.error(error);
  process.exit(1);
});
