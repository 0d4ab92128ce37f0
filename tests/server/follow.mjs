// The client behind a network that is given: prints what it sees, one JSON object a line, and books when told to.
import { createInterface } from 'node:readline';

const [client, url, token] = process.argv.slice(2);
const { RealtimeClient } = await import(client);
const say = (line) => console.log(JSON.stringify(line));

const live = new RealtimeClient({
  url: `${url.replace('http', 'ws')}/socket`,
  getToken: async () => token,
  socketProbeMs: 300,
});
live.on('state', ({ state }) => say({ state, transport: live.transport }));
live.on('channel', (channel) => channel.on('*', ({ type, offset }) => say({ channel: channel.name, type, offset })));
await live.connect();
for await (const line of createInterface({ input: process.stdin })) {
  const { method, params } = JSON.parse(line);
  live.call(method, params).then(
    (result) => say({ method, result }),
    (error) => say({ method, error: error.type }),
  );
}
live.disconnect();
process.exit(0);
